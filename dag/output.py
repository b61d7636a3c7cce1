"""What a subtask produced, made fit for JSON and PostgreSQL."""

from __future__ import annotations

import math
import re
from typing import Final

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json

MAX_VALUES: Final = 5_000_000
REPLACEMENT: Final = "\ufffd"
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


def sanitise(value: object, *, max_depth: int = 200, max_values: int = MAX_VALUES) -> Json:
    """A copy of ``value`` that every JSON writer and PostgreSQL take.

    NUL and lone surrogates become U+FFFD; NaN, infinities and integers beyond a float's range become null; integers
    beyond 64 bits become floats, which is what a JSON reader makes of them; tuples become lists; keys that are
    numbers, booleans or null become text as JSON writes them (where two keys become equal, the later one stays).

    Raises UserError: ``OUTPUT_INVALID`` for bytes, sets, dates and everything else that JSON has no word for,
    ``OUTPUT_TOO_DEEP`` for containers nested deeper than ``max_depth`` (also for a container that holds itself),
    ``OUTPUT_TOO_LARGE`` for more than ``max_values`` values.
    """
    holder: list[Json] = []
    # What is still to be copied: value, its depth, and where the copy goes. A stack, so the deepest comes first and a
    # value that holds itself is refused before it fills the memory.
    ahead: list[tuple[object, int, list[Json] | dict[str, Json], str]] = [(value, 1, holder, "")]
    budget = max_values
    while ahead:
        item, depth, target, key = ahead.pop()
        budget -= 1
        copied: Json
        if isinstance(item, (dict, list, tuple)):
            if depth > max_depth:
                raise UserError("OUTPUT_TOO_DEEP", f"the output is nested deeper than {max_depth} levels")
            if budget < len(item):
                raise UserError("OUTPUT_TOO_LARGE", f"the output holds more than {max_values:,} values")
            if isinstance(item, dict):
                members: dict[str, Json] = {}
                # Reserved now, so that the keys keep their order although the stack turns it round.
                pairs = [(_key(name), member) for name, member in item.items()]
                members.update((name, None) for name, _ in pairs)
                last = dict(pairs)
                ahead.extend((member, depth + 1, members, name) for name, member in last.items())
                copied = members
            else:
                elements: list[Json] = []
                ahead.extend((element, depth + 1, elements, "") for element in reversed(item))
                copied = elements
        else:
            copied = _scalar(item)
        if isinstance(target, list):
            target.append(copied)
        else:
            target[key] = copied
    return holder[0]


def clean_text(text: str) -> str:
    """``text`` with NUL and lone surrogates replaced by U+FFFD."""
    return _UNFIT.sub(REPLACEMENT, str(text))


def _scalar(item: object) -> Json:
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, str):
        return clean_text(item)
    if isinstance(item, int):
        return int(item) if _MIN_INT <= item <= _MAX_INT else _float(item)
    if isinstance(item, float):
        return _float(item)
    raise UserError("OUTPUT_INVALID", f"the output holds a {type(item).__name__}, which JSON can't carry")


def _float(number: float) -> float | None:
    try:
        as_float = float(number)
    except OverflowError:
        return None
    return as_float if math.isfinite(as_float) else None


def _key(key: object) -> str:
    if isinstance(key, str):
        return clean_text(key)
    if key is None or isinstance(key, (bool, int, float)):
        scalar = _scalar(key)
        return "null" if scalar is None else str(scalar).lower() if isinstance(scalar, bool) else str(scalar)
    raise UserError("OUTPUT_INVALID", f"the output has a key of type {type(key).__name__}, which JSON can't carry")
