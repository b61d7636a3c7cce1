"""The bytes of a body as JSON: how many values it may have, what is no JSON, and a place for every fault."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any, Final

import orjson

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import MAX_NESTING, escape, faults_of
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.written import MAX_GROWTH, MAX_WRITTEN_CHARS, written_fault
from rayloom.serve.problems import Problem, invalid

MAX_VALUES: Final = 5_000_000
"""50 for each subtask of the largest plan. One of two bytes takes up to a hundred in memory."""

# A text that is not closed goes on to the end, so that nothing is looked at twice; nor is anything kept for going back.
_TEXT: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_TEXTS: Final = re.compile(_TEXT, re.DOTALL)
_PIECE: Final = re.compile(_TEXT + rb'|[^\[\]{}"]+|[\[\]{}]', re.DOTALL)
_LONG_INTEGER: Final = re.compile(rb'(?<![0-9.eE+"])[0-9]{19,}(?![0-9.eE])')
"""Of so many digits an integer may have more than 64 bits. It may stand in a text, or be an exponent."""
_DIGITS: Final = bytes(ord("0") if chr(code) in "0123456789" else ord(" ") for code in range(256))
_BEYOND: Final = 2**64
_NO_OBJECT: Final = Fault("", "must be a JSON object")


def parse(raw: bytes) -> JsonObject:
    """The JSON object that a body is.

    Raises Problem: 400 for what is not JSON, 413 for too many values, 422 with pointers for JSON that can't be stored.
    """
    if not raw.strip():
        raise Problem(400, "the body is empty: a JSON object is needed", code="MALFORMED")
    if _count(raw) > MAX_VALUES:
        raise Problem(413, f"the body has more than {MAX_VALUES:,} values", code="BODY_TOO_LARGE")
    try:
        document: Json = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _not_json(raw, error) from None
    if not isinstance(document, dict):
        raise invalid([_NO_OBJECT])
    faults = faults_of(document)
    if _may_hold_long_integers(raw):
        # For the quick reader they are floats.
        with suppress(RecursionError):
            faults = faults_of(_read_exactly(raw))
    if not faults and len(raw) > MAX_WRITTEN_CHARS // MAX_GROWTH:
        too_large = written_fault(document)
        faults = [] if too_large is None else [too_large]
    if faults:
        raise invalid(faults)
    return document


def _count(raw: bytes) -> int:
    """How many values there are, rather one too many for each container that is empty."""
    marks = (b",", b"[", b"{")
    count = 1 + sum(map(raw.count, marks))
    if count > MAX_VALUES:
        # Commas may stand in texts.
        bare = _TEXTS.sub(b"", raw)
        count = 1 + sum(map(bare.count, marks))
    return count


def _may_hold_long_integers(raw: bytes) -> bool:
    return b"0" * 19 in raw.translate(_DIGITS) and _LONG_INTEGER.search(raw) is not None


def _read_exactly(raw: bytes | bytearray) -> Any:
    """What Python's own reader makes of it: slower, with integers of any length. Raises ValueError, RecursionError."""
    return json.loads(raw, parse_int=lambda text: int(text) if len(text) <= 20 else _BEYOND)


def _not_json(raw: bytes, error: orjson.JSONDecodeError) -> Problem:
    try:
        # Python's own reader takes what is JSON by its grammar but no Unicode, or beyond any number: that is a fault
        # with a place, not a malformed body.
        faults = _faults_of_deep(raw) if "depth limit" in str(error) else faults_of(_read_exactly(raw))
    except RecursionError:
        faults = _faults_of_deep(raw)
    except ValueError:
        faults = []
    return invalid(faults) if faults else Problem(400, f"the body is not JSON: {error}"[:500], code="MALFORMED")


def _faults_of_deep(raw: bytes) -> list[Fault]:
    """The fault of a body that is too deep for any reader; none where it is not even JSON.

    Each container is read by itself, with nulls in place of those inside it.
    """
    place: str | None = None
    open_ones = [bytearray()]
    try:
        for piece in map(re.Match.group, _PIECE.finditer(raw)):
            if piece in (b"[", b"{"):
                if place is None and len(open_ones) > MAX_NESTING:
                    place = "".join(f"/{escape(_place_in(container))}" for container in open_ones[1:])
                open_ones.append(bytearray(piece))
            elif piece in (b"]", b"}"):
                _read_exactly(open_ones.pop() + piece)
                open_ones[-1] += b"null"
            else:
                open_ones[-1] += piece
        (outermost,) = open_ones
        _read_exactly(outermost)
    except (ValueError, IndexError):
        return []
    if not raw.lstrip().startswith(b"{"):
        return [_NO_OBJECT]
    return [] if place is None else [Fault(place, f"is nested deeper than {MAX_NESTING} levels")]


def _place_in(container: bytearray) -> str | int:
    """The key or index of what comes next in a container that is not closed yet."""
    if container.startswith(b"["):
        return len(_read_exactly(container + b"null]")) - 1
    return str(next(reversed(_read_exactly(container + b"null}"))))
