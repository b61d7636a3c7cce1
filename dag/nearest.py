"""Did you mean …? The nearest of the names that exist, for messages about one that does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

_MAX_WORD_CHARS: Final = 128
_MAX_COMPARED: Final = 20_000
"""Comparing is slow, the slower the longer both are: characters of the word times those of the names. Among more the
first names must do. That takes some 5 ms at most."""
MAX_HINTS: Final = 5


def nearest(word: str, names: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to ``count`` of ``names`` that look like ``word``, best first."""
    word = word[:_MAX_WORD_CHARS]
    return get_close_matches(word, _first(names, _MAX_COMPARED // max(len(word), 1)), n=count)


def did_you_mean(word: str, names: Iterable[str], *, count: int = 3) -> str:
    """``"; did you mean a, b?"``, ready to end a sentence with; empty where nothing is near."""
    near = nearest(word, names, count=count)
    return f"; did you mean {', '.join(near)}?" if near else ""


class Hints:
    """``did_you_mean`` for the first few faults of a plan: one that has a hundred must not cost as many searches."""

    def __init__(self) -> None:
        self._left = MAX_HINTS

    def __call__(self, word: str, names: Iterable[str]) -> str:
        """The hint; empty where nothing is near, and once there were enough."""
        if not self._left:
            return ""
        self._left -= 1
        return did_you_mean(word, names)


def _first(names: Iterable[str], chars: int) -> Iterator[str]:
    for name in names:
        chars -= len(name) + 1
        if chars < 0:
            return
        yield name
