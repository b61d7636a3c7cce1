"""A tool's JSON Schema against an input that still holds references: what can be known now is judged now.

A reference stands for a value that is not there yet. Wherever the verdict would depend on that value there is none;
everything around it is judged in full: missing and unknown members, types, bounds. Of a string with references inside
only its type is known, and that is judged too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing.exceptions import Unresolvable
from referencing.jsonschema import EMPTY_REGISTRY

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import pointer_to
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.references import LITERAL, REF, SECRET, plain_text
from rayloom.dag.schema_depth import Keyword, TooDeep, bounded, errors_of
from rayloom.dag.values import Json, JsonObject

_MAX_MESSAGE_CHARS: Final = 300


class InputCheck:
    """The compiled check of one tool's schema: build it once, use it for every subtask of that tool."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        # Nothing but the schema itself is known: one that points to an address must not make us fetch it.
        self._validator = _Lenient(schema, registry=EMPTY_REGISTRY)
        self._of_empty: tuple[Fault, ...] | None = None

    def faults(self, given: JsonObject, *, pointer: str = "", limit: int = 20) -> list[Fault]:
        """What is wrong with ``given``, whatever its references will give; empty where nothing is."""
        if not given:
            if self._of_empty is None:
                self._of_empty = tuple(self._run(given, "", limit))
            return [Fault(pointer + fault.pointer, fault.message) for fault in self._of_empty]
        return self._run(given, pointer, limit)

    def _run(self, given: JsonObject, pointer: str, limit: int) -> list[Fault]:
        found: list[Fault] = []
        try:
            for error in errors_of(self._validator, _with_gaps(given)):
                where = pointer_to(pointer, error.absolute_path)
                found.append(Fault(where, message_of(error)[:_MAX_MESSAGE_CHARS]))
                if len(found) == limit:
                    break
        except TooDeep as error:
            found.append(Fault(pointer, f"can't be checked: {error}"))
        except Unresolvable as error:
            found.append(Fault(pointer, f"can't be checked, the tool's schema is unusable: {str(error)[:200]}"))
        return found


def message_of(error: ValidationError) -> str:
    """What a fault says: where a schema excludes combinations, its ``errorMessage`` says it better than the keyword."""
    own: Any = error.schema
    own = own.get("errorMessage") if error.validator in ("not", "oneOf") else None
    return own if isinstance(own, str) else error.message


class _Gap:
    """Where any value may come to stand."""

    def __repr__(self) -> str:
        return "<reference>"


class _TextGap(str):
    """Where some text will come to stand; as it is written it has no meaning but its type."""

    __slots__ = ()


_GAP: Final = _Gap()


def _with_gaps(value: Json) -> Any:
    """``value`` as the schema should see it: literals opened, references made gaps; shared where nothing changes."""
    if isinstance(value, str):
        plain = plain_text(value)
        return _TextGap(value) if plain is None else plain
    if isinstance(value, list):
        return [_with_gaps(item) for item in value]
    if not isinstance(value, dict):
        return value
    if LITERAL in value:
        return value[LITERAL]
    if REF in value or SECRET in value:
        return _GAP
    return {key: _with_gaps(member) for key, member in value.items()}


def _has_gap(value: Any) -> bool:
    ahead = [value]
    while ahead:
        item = ahead.pop()
        if isinstance(item, (_Gap, _TextGap)):
            return True
        if isinstance(item, dict):
            ahead.extend(item.values())
        elif isinstance(item, list):
            ahead.extend(item)
    return False


# Keywords whose verdict on a container may turn when a gap inside it is filled. Their errors stand only without gaps.
_UNDECIDED_WITH_GAPS: Final = frozenset(
    {"const", "enum", "not", "uniqueItems", "unevaluatedItems", "unevaluatedProperties"}
)
# Keywords that look at the letters of a text.
_OF_CONTENT: Final = frozenset({"pattern", "minLength", "maxLength", "format"})


def _around_gaps(name: str, keyword: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterable[ValidationError]:
        if isinstance(instance, _Gap) or (name in _OF_CONTENT and isinstance(instance, _TextGap)):
            return ()
        errors = keyword(validator, value, instance, schema) or ()
        return _sure(errors, instance) if name in _UNDECIDED_WITH_GAPS else errors

    return check


def _sure(errors: Iterable[ValidationError], instance: Any) -> Iterator[ValidationError]:
    for error in errors:
        if _has_gap(instance):
            return
        yield error


def _required(validator: Any, names: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """As the specification has it, but the fault's place is the member that is missing."""
    if validator.is_type(instance, "object"):
        for name in names:
            if name not in instance:
                yield ValidationError("is missing", path=(name,))


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """As the specification has it, but a forbidden member is the fault's place, each its own."""
    if allowed is not False or not validator.is_type(instance, "object") or "patternProperties" in schema:
        yield from _STANDARD["additionalProperties"](validator, allowed, instance, schema) or ()
        return
    named = schema.get("properties", {})
    for name in instance:
        if name not in named:
            yield ValidationError("is not a field here" + did_you_mean(name, named), path=(name,))


def _one_of(validator: Any, branches: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """With gaps several branches may pass that the values will tell apart; that none passes is a fault all the same."""
    if not _has_gap(instance):
        yield from _STANDARD["oneOf"](validator, branches, instance, schema) or ()
    elif not any(validator.evolve(schema=branch).is_valid(instance) for branch in branches):
        yield ValidationError(f"{instance!r} is not valid under any of the given schemas")


def _if(validator: Any, condition: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """With gaps a condition that passes may yet fail, so neither consequence is sure; one that fails has failed."""
    if not _has_gap(instance) or not validator.evolve(schema=condition).is_valid(instance):
        yield from _STANDARD["if"](validator, condition, instance, schema) or ()


def _contains(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """With gaps the matching elements can be counted only from above: too few is sure, too many is not."""
    if not _has_gap(instance):
        yield from _STANDARD["contains"](validator, wanted, instance, schema) or ()
    elif validator.is_type(instance, "array"):
        count = sum(validator.evolve(schema=wanted).is_valid(item) for item in instance)
        if count < schema.get("minContains", 1):
            yield ValidationError(f"{instance!r} does not contain enough items that match the given schema")


_STANDARD: Final[Mapping[str, Keyword]] = dict(Draft202012Validator.VALIDATORS)
_OWN: Final[Mapping[str, Keyword]] = {
    "required": _required,
    "additionalProperties": _additional_properties,
    "oneOf": _one_of,
    "if": _if,
    "contains": _contains,
}
_Lenient: Final[Any] = extend(  # type: ignore[no-untyped-call]  # the stubs leave it untyped
    Draft202012Validator,
    bounded({name: _around_gaps(name, _OWN.get(name, keyword)) for name, keyword in _STANDARD.items()}),
)
