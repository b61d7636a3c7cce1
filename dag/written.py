"""How long a JSON value becomes when PostgreSQL writes it out.

It keeps numbers as decimal digits: ``1e308`` goes in as five characters and comes out as 309. What is small enough to
come in may so be too large to be read ever again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import escape
from rayloom.dag.values import Json

MAX_WRITTEN_CHARS: Final = 128 * 1024 * 1024
"""Twice of what a body may have, so that nobody gets here without numbers such as those."""
MAX_GROWTH: Final = 64
"""No JSON text becomes so many times as long."""
_POINTED_LEVELS: Final = 4
"""As deep as the input of a subtask in a submission; where in it the numbers stand helps nobody."""
_NUMBER_CHARS: Final = 20
_DECIMAL_DIGITS: Final = math.log10(2)


def written_fault(value: Json, *, limit: int = MAX_WRITTEN_CHARS) -> Fault | None:
    """The smallest part of ``value`` that is too long when written out, at most four levels down, if any is."""
    if written_chars(value, limit=limit) <= limit:
        return None
    pointer = ""
    for _ in range(_POINTED_LEVELS):
        found = next(((name, part) for name, part in _parts(value) if written_chars(part, limit=limit) > limit), None)
        if found is None:
            break
        pointer, value = f"{pointer}/{escape(found[0])}", found[1]
    return Fault(pointer, f"is too large: with its numbers written out it has more than {limit:,} characters")


def written_chars(value: Json, *, limit: float = math.inf) -> int:
    """About the characters of ``value``, rather too many; once above ``limit`` they are not counted any further."""
    counted = 0
    ahead = [value]
    while ahead and counted <= limit:
        item = ahead.pop()
        # A comma and a space, or a colon.
        counted += 2
        if isinstance(item, str):
            counted += len(item) + 2
        elif isinstance(item, float):
            counted += _NUMBER_CHARS + int(abs(math.frexp(item)[1]) * _DECIMAL_DIGITS)
        elif isinstance(item, list):
            ahead.extend(item)
        elif isinstance(item, dict):
            counted += sum(len(name) + 4 for name in item)
            ahead.extend(item.values())
        else:
            counted += _NUMBER_CHARS
    return counted


def _parts(value: Json) -> Iterable[tuple[str | int, Json]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()
