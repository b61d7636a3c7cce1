"""Somebody's JSON Schema, made harmless: bounded, and without what may take for ever to check a value against.

Whatever fits the schema as it was written fits what is made of it. To leave something out lets more in, but where it
stands under a negation of some kind it would keep something out: there the negation is left out with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")
MAX_VALUES: Final = 2_000
"""Of one schema, its references put in: whatever is checked against it is checked beside requests of others."""
# A pattern of somebody's own may take for ever, and Python holds on to everything meanwhile.
_LIMITS_LEFT_OUT: Final = frozenset({"pattern", "patternProperties", "$dynamicRef"})
_NAMES_LEFT_OUT: Final = frozenset({"$defs", "definitions", "$id", "$anchor", "$ref"})
_VALUES: Final = frozenset({"const", "enum", "default", "examples"})
_BY_NAME: Final = frozenset({"properties", "dependentSchemas", "dependencies"})
"""What holds a schema for each of several names, which are no keywords."""


def tamed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its own references put in and without patterns. Raises ValueError, which says what is wrong."""
    try:
        return _Inlining(schema).run()
    except RecursionError:
        raise ValueError("is nested too deep once its references are put in") from None


class _Inlining:
    """A schema with its own references put in, so that its size is what checking it costs."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._values = 0
        self._left_out = 0

    def run(self) -> dict[str, Any]:
        """Raises ValueError for what is too large, or refers to elsewhere."""
        found = self._schema_of(self._schema, ())
        return found if isinstance(found, dict) else {}

    def _schema_of(self, schema: Any, within: tuple[str, ...]) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ValueError(f"has more than {MAX_VALUES:,} parts once its references are put in")
        if isinstance(schema, list):
            return [self._schema_of(item, within) for item in schema]
        if not isinstance(schema, dict):
            return schema
        left_out = self._left_out
        made, loosened = self._members(schema, within)
        target = schema.get("$ref")
        if isinstance(target, str) and target in within:
            # What refers to itself may be anything from there on.
            self._left_out += 1
        elif isinstance(target, str):
            found = self._schema_of(self._target(target), (*within, target))
            if not made:
                return found
            made["allOf"] = [*made.get("allOf", []), found]
        _loosen(made, loosened, is_whole=self._left_out == left_out)
        return made

    def _members(self, schema: Mapping[str, Any], within: tuple[str, ...]) -> tuple[dict[str, Any], frozenset[str]]:
        """The members of a schema, and the names of those of which something was left out."""
        made: dict[str, Any] = {}
        loosened: set[str] = set()
        for name, value in schema.items():
            left_out = self._left_out
            if name in _LIMITS_LEFT_OUT:
                self._left_out += 1
            elif name in _VALUES:
                made[name] = value
            elif name in _BY_NAME and isinstance(value, dict):
                made[name] = {key: self._schema_of(member, within) for key, member in value.items()}
            elif name not in _NAMES_LEFT_OUT:
                made[name] = self._schema_of(value, within)
            if self._left_out > left_out:
                loosened.add(name)
        return made, frozenset(loosened)

    def _target(self, reference: str) -> Any:
        """What a reference in a URI fragment points to (RFC 6901, section 6)."""
        if not reference.startswith("#"):
            raise ValueError(f"refers to `{reference[:100]}`: only references within the schema itself are followed")
        first, *steps = unquote(reference[1:]).split("/")
        found: Any = None if first else self._schema
        for step in steps:
            found = _step(found, step.replace("~1", "/").replace("~0", "~"))
        if found is None:
            raise ValueError(f"refers to `{reference[:100]}`, which is not there")
        return found


def _step(found: Any, name: str) -> Any:
    if isinstance(found, dict):
        return found.get(name)
    if isinstance(found, list) and _INDEX.fullmatch(name) and int(name) < len(found):
        return found[int(name)]
    return None


def _loosen(made: dict[str, Any], loosened: frozenset[str], *, is_whole: bool) -> None:
    """Leave out what would now keep something out. ``is_whole``: nothing was left out anywhere in it."""
    if "not" in loosened:
        del made["not"]
    if "oneOf" in loosened:
        # More than one of them may fit now.
        made["allOf"] = [*made.get("allOf", []), {"anyOf": made.pop("oneOf")}]
    if "if" in loosened:
        for name in ("if", "then", "else"):
            made.pop(name, None)
    if "contains" in loosened:
        made.pop("maxContains", None)
    if "patternProperties" in loosened:
        # What the patterns took is no longer told from what is additional.
        made.pop("additionalProperties", None)
    if not is_whole:
        for name in ("unevaluatedProperties", "unevaluatedItems"):
            made.pop(name, None)
