"""What counts as JSON here, judged before anything else looks at a value.

A value from outside may be deeper than a recursive reader survives, hold a NUL that PostgreSQL refuses, or a number
that no JSON text can carry. Both walks below are loops, so no value can overflow the stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from rayloom.dag.errors import Fault

MAX_NESTING: Final = 64
"""Containers inside one another, the outermost counting as one."""
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_SCALARS: Final = frozenset({int, float, bool, type(None)})


def escape(token: str | int) -> str:
    """One reference token of a JSON pointer (RFC 6901): ``~`` and ``/`` are escaped."""
    return str(token).replace("~", "~0").replace("/", "~1")


def pointer_to(base: str, path: Iterable[str | int]) -> str:
    """``base`` with ``path`` below it, as a JSON pointer."""
    return base + "".join(f"/{escape(token)}" for token in path)


def faults_of(value: object, *, pointer: str = "", max_nesting: int = MAX_NESTING, limit: int = 100) -> list[Fault]:
    """Everything in ``value`` that is not plain JSON, at most ``limit`` faults; an empty list means that it is JSON.

    Faults: nesting deeper than ``max_nesting``, NUL and lone surrogates in strings and keys, NaN and infinities,
    integers beyond 64 bits, keys that are not strings, and values of any other type.
    """
    if _is_clean(value, max_nesting):
        return []
    found: list[Fault] = []
    # Depth first, in reading order: the stack holds what is still to be read, last first.
    stack: list[tuple[object, str, int]] = [(value, pointer, 1)]
    while stack and len(found) < limit:
        item, where, depth = stack.pop()
        fault = _fault_of(item)
        if fault is not None:
            found.append(Fault(where, fault))
        elif not isinstance(item, (dict, list)):
            continue
        elif depth > max_nesting:
            found.append(Fault(where, f"is nested deeper than {max_nesting} levels"))
        elif isinstance(item, list):
            stack.extend((item[i], f"{where}/{i}", depth + 1) for i in range(len(item) - 1, -1, -1))
        else:
            below: list[tuple[object, str, int]] = []
            for key, member in item.items():
                key_fault = _fault_of(key) if isinstance(key, str) else "is a key that is not a string"
                if key_fault is not None:
                    shown = repr(key)[:100]
                    found.append(Fault(where, f"has a bad key: {shown} {key_fault}"))
                else:
                    below.append((member, f"{where}/{escape(key)}", depth + 1))
            stack.extend(reversed(below))
    return found[:limit]


def _is_clean(value: object, max_nesting: int) -> bool:
    """Whether there is no fault at all: the quick walk, level by level, that keeps no pointers."""
    level: list[Any] = [value]
    depth = 0
    while level:
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                if _fault_of_text(item) is not None:
                    return False
            elif kind is dict or kind is list:
                if depth == max_nesting:
                    return False
                below.extend(item)
                if kind is dict:
                    if not all(type(key) is str for key in item):
                        return False
                    below.extend(item.values())
            # A value of any other type, a subclass too, is for the thorough walk to judge.
            elif kind not in _SCALARS or _fault_of(item) is not None:
                return False
        level = below
        depth += 1
    return True


def _fault_of(item: object) -> str | None:
    """What is wrong with one value, its members left aside."""
    if item is None or isinstance(item, (bool, dict, list)):
        return None
    if isinstance(item, str):
        return _fault_of_text(item)
    if isinstance(item, int):
        return None if _MIN_INT <= item <= _MAX_INT else "is an integer beyond 64 bits"
    if isinstance(item, float):
        return None if math.isfinite(item) else "is not a finite number"
    return f"is not JSON but {type(item).__name__}"


def _fault_of_text(text: str) -> str | None:
    if text.isascii():
        return "holds a NUL character" if "\0" in text else None
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not Unicode text"
    return "holds a NUL character" if "\0" in text else None
