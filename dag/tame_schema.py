"""Somebody's JSON Schema, made harmless: bounded, and without what may take for ever to check a value against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MAX_VALUES: Final = 2_000
"""Of one schema, its references put in: whatever is checked against it is checked beside requests of others."""
# A pattern of somebody's own may take for ever, and Python holds on to everything meanwhile.
_LEFT_OUT: Final = frozenset({"pattern", "patternProperties", "$defs", "definitions", "$id", "$anchor", "$dynamicRef"})


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
        made: dict[str, Any] = {}
        for name, value in schema.items():
            if name in ("const", "enum", "default", "examples"):
                made[name] = value
            elif name in ("properties", "dependentSchemas") and isinstance(value, dict):
                made[name] = {key: self._schema_of(member, within) for key, member in value.items()}
            elif name not in _LEFT_OUT and name != "$ref":
                made[name] = self._schema_of(value, within)
        target = schema.get("$ref")
        # What refers to itself may be anything from there on.
        if isinstance(target, str) and target not in within:
            found = self._schema_of(self._target(target), (*within, target))
            if not made:
                return found
            made["allOf"] = [*made.get("allOf", []), found]
        return made

    def _target(self, reference: str) -> Any:
        if not reference.startswith("#"):
            raise ValueError(f"refers to `{reference[:100]}`: only references within the schema itself are followed")
        found: Any = self._schema
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise ValueError(f"refers to `{reference[:100]}`, which is not there")
            found = found[name]
        return found
