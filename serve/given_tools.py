"""The tools that a request brings along to be planned with: names, descriptions and schemas, and nothing to call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import pointer_to
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.tool_view import ToolView
from rayloom.serve.problems import invalid

MAX_TOOLS: Final = 1_000
MAX_DESCRIPTION_CHARS: Final = 10_000
MAX_SCHEMA_VALUES: Final = 2_000
"""Of one schema, its references put in: whatever a model says is checked against it beside requests of others."""
_MAX_FAULTS: Final = 100
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/:]{1,128}")
_FIELDS: Final = ("name", "description", "schema")
# A pattern of somebody's own may take for ever, and Python holds on to everything meanwhile.
_LEFT_OUT: Final = frozenset({"pattern", "patternProperties", "$defs", "definitions", "$id", "$anchor", "$dynamicRef"})


def read_tools(raw: list[Any]) -> dict[str, ToolView]:
    """The tools of ``/tools``, by name. Patterns in their schemas are not gone by. Raises Problem (422)."""
    if len(raw) > MAX_TOOLS:
        raise invalid([Fault("/tools", f"has {len(raw):,} tools, at most {MAX_TOOLS:,} may be given")])
    tools: dict[str, ToolView] = {}
    faults: list[Fault] = []
    for place, item in enumerate(raw):
        where = f"/tools/{place}"
        found = _faults_of(item, where)
        if not found and item["name"] in tools:
            found = [Fault(f"{where}/name", f"`{item['name']}` was given before")]
        if not found:
            try:
                schema = _Inlining(item["schema"]).run()
            except ValueError as error:
                found = [Fault(f"{where}/schema", str(error))]
            else:
                description = item.get("description", "")
                tools[item["name"]] = ToolView(name=item["name"], schema=schema, resources={}, description=description)
        faults += found
        if len(faults) >= _MAX_FAULTS:
            break
    if faults:
        raise invalid(faults[:_MAX_FAULTS])
    return tools


def _faults_of(item: Any, where: str) -> list[Fault]:
    if not isinstance(item, dict):
        return [Fault(where, "must be an object with `name`, `description` and `schema`")]
    faults = [
        Fault(pointer_to(where, [name]), "is not a field here" + did_you_mean(name, _FIELDS))
        for name in item
        if name not in _FIELDS
    ]
    name, description, schema = item.get("name"), item.get("description", ""), item.get("schema")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        faults.append(Fault(f"{where}/name", "must be 1 to 128 of the characters A-Z a-z 0-9 _ . - / :"))
    if not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARS:
        faults.append(Fault(f"{where}/description", f"must be text of at most {MAX_DESCRIPTION_CHARS:,} characters"))
    if not isinstance(schema, dict):
        return [*faults, Fault(f"{where}/schema", "must be an object: the JSON Schema of the tool's input")]
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        faults.append(Fault(pointer_to(f"{where}/schema", error.absolute_path), error.message[:300]))
    return faults


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
        if self._values > MAX_SCHEMA_VALUES:
            raise ValueError(f"has more than {MAX_SCHEMA_VALUES:,} parts once its references are put in")
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
            made["allOf"] = [*made.get("allOf", []), self._schema_of(self._target(target), (*within, target))]
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
