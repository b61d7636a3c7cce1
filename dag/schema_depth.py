"""How deep the check of a value against a JSON Schema may go: well short of where Python breaks it off.

Such a check is a recursion, some frames for each keyword inside another. Left alone, one that goes too deep ends in a
RecursionError, and where that strikes inside native code it panics, which no ``except Exception`` catches. So what
leads on is counted, and the check is given up in time: it has no verdict then, so whoever asked must refuse.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

# Values have up to 64 levels, each with several keywords of its schema at some frames each: Python's 1,000 frames are
# too few for some that are quite ordinary. With 2,000 a check still ends well on a stack of 1 MiB, where one with 3,000
# crashes; stacks of the main thread and of others are of 8 MiB where nobody has changed that.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 2_000))

Keyword = Callable[[Any, Any, Any, Any], Iterable[ValidationError] | None]

_FRAMES: Final[Mapping[str, int]] = dict.fromkeys(
    (
        "$ref", "$dynamicRef", "allOf", "anyOf", "properties", "patternProperties", "additionalProperties", "items",
        "prefixItems", "dependentSchemas", "propertyNames",
    ),
    3,
) | {"not": 6, "if": 6, "oneOf": 7, "contains": 7, "unevaluatedItems": 10, "unevaluatedProperties": 10}  # fmt: skip
"""The keywords that lead on, and how many frames lie at most between one of them and another right below it."""
_KEPT: Final = 150
"""Frames for what a keyword does itself, such as to follow a reference, or to write out a value that does not fit."""
_PANIC: Final = "PanicException"
"""The type of a panic in native code: it can't be imported."""


class TooDeep(Exception):
    """Value and schema nest too deeply together, or the schema's references lead round without end."""

    def __init__(self) -> None:
        super().__init__(
            "it and its schema nest too deeply together, or the schema's references lead round in a circle"
        )


_left: ContextVar[int] = ContextVar("_left", default=0)


def bounded(keywords: Mapping[str, Keyword]) -> dict[str, Keyword]:
    """The keywords of a validator that `errors_of` may run."""
    return {name: _counted(_FRAMES[name], each) if name in _FRAMES else each for name, each in keywords.items()}


def _counted(frames: int, keyword: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        left = _left.get()
        if left < frames:
            raise TooDeep
        _left.set(left - frames)
        try:
            yield from keyword(validator, value, instance, schema) or ()
        finally:
            _left.set(left)

    return check


def errors_of(validator: Validator, value: Any) -> Iterator[ValidationError]:
    """The errors of a value. Raises TooDeep, and what the validator raises of a schema that is no good."""
    _left.set(sys.getrecursionlimit() - _frames_here() - _KEPT)
    try:
        yield from validator.iter_errors(value)
    except RecursionError as error:
        raise TooDeep from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise TooDeep from error


def _frames_here() -> int:
    frame, count = sys._getframe(), 0
    while frame.f_back is not None:
        frame, count = frame.f_back, count + 1
    return count


BoundedValidator: Final[Any] = extend(  # type: ignore[no-untyped-call]  # the stubs leave it untyped
    Draft202012Validator, bounded(Draft202012Validator.VALIDATORS)
)
"""As the specification has it."""
