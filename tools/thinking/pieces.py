"""A long value in pieces that a model can take: at the items of a list, at paragraphs, lines and words of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import orjson

from rayloom.dag.values import Json

Count = Callable[[str], int]

_BREAKS: Final = ("\n\n", "\n", ". ", "。", " ")
_NEAR: Final = 0.3
"""A piece ends at a break that is found in this last part of it."""
_CAREFUL: Final = 0.9
"""Text is not equally dense everywhere: pieces are cut a little shorter than they could be on average."""

_TOKEN_CHARS_MAX: Final = 128
"""No token of the reference encodings is longer: what is beyond so many for each need not be counted."""


def text_of(value: Json) -> str:
    """A value as a model reads it: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def pieces_of(value: Json, size: int, count: Count) -> list[str]:
    """The whole value in pieces of at most ``size`` tokens."""
    if not isinstance(value, list):
        return list(_cut(text_of(value), size, count))
    pieces: list[str] = []
    held, held_tokens = list[str](), 0
    for item in value:
        text = text_of(item)
        tokens = count(text) + 1
        if held and held_tokens + tokens > size:
            pieces.append("\n".join(held))
            held, held_tokens = [], 0
        if tokens > size:
            pieces.extend(_cut(text, size, count))
        else:
            held.append(text)
            held_tokens += tokens
    return [*pieces, "\n".join(held)] if held else pieces


def _cut(text: str, size: int, count: Count) -> Iterator[str]:
    tokens = count(text)
    if tokens <= size:
        yield text
        return
    chars = max(int(len(text) * size / tokens * _CAREFUL), 1)
    at = 0
    while at < len(text):
        piece = text[at : at + chars]
        if at + chars < len(text):
            piece = piece[: _end(piece)]
        at += len(piece)
        # One that is denser than the rest is cut again; a single character can't be.
        if len(piece) > 1 and count(piece) > size:
            half = max(_end(piece[: len(piece) // 2]), 1)
            yield from _cut(piece[:half], size, count)
            yield from _cut(piece[half:], size, count)
        else:
            yield piece


def _end(piece: str) -> int:
    """Where to end a piece: after the last good break that is near its end."""
    least = int(len(piece) * (1 - _NEAR))
    for mark in _BREAKS:
        found = piece.rfind(mark, least)
        if found >= 0:
            return found + len(mark)
    return len(piece)


def head_of(text: str, size: int, count: Count) -> str:
    """The beginning of a text, of at most ``size`` tokens, and a word on how much is left out; all of it if it fits."""
    near = text[: size * _TOKEN_CHARS_MAX]
    if len(near) == len(text) and count(text) <= size:
        return text
    head = next(_cut(near, max(size - 24, 1), count))
    return f"{head} … ({len(text) - len(head):,} more characters are left out here)"
