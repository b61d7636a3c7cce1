"""The tools that a request brings along to be planned with: names, descriptions and schemas, and nothing to call."""

from __future__ import annotations

import re
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import pointer_to
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.tame_schema import tamed
from rayloom.dag.tool_view import ToolView
from rayloom.serve.problems import invalid

MAX_TOOLS: Final = 1_000
MAX_DESCRIPTION_CHARS: Final = 10_000
_MAX_FAULTS: Final = 100
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/:]{1,128}")
_FIELDS: Final = ("name", "description", "schema")


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
                schema = tamed(item["schema"])
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                found = [Fault(pointer_to(f"{where}/schema", error.absolute_path), error.message[:300])]
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
        faults.append(Fault(f"{where}/schema", "must be an object: the JSON Schema of the tool's input"))
    return faults
