"""What the input of a subtask that a model does says beside its data: a few names at its top, for both types.

All other members are data: REASONING shows them to the model, CODE_GEN gives them to the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from rayloom.dag.tame_schema import tamed
from rayloom.dag.values import Json, JsonObject

MAX_STEPS: Final = 32
DEFAULT_STEPS: Final = 8
MAX_REPAIRS: Final = 5
DEFAULT_REPAIRS: Final = 2
CODE: Final = "code"
"""What CODE_GEN is given where no model writes it."""
WHOLE_REQUEST: Final = "whole_request"
"""The prompt that a subtask is one step of; a plan that a model made has it in what models do."""

_OUTPUT_SCHEMA: Final[JsonObject] = {
    "type": "object",
    "description": "JSON Schema (draft 2020-12) that the answer, or the program's result, must fit",
}
REASONING_INPUT: Final[JsonObject] = {
    "type": "object",
    "properties": {
        "output_schema": _OUTPUT_SCHEMA,
        "use_tools": {
            "type": "array",
            "minItems": 1,
            "maxItems": 64,
            "items": {"type": "string", "minLength": 1, "maxLength": 256},
            "description": "names or globs of tools that the model may call before it answers",
        },
        "max_steps": {"type": "integer", "minimum": 1, "maximum": MAX_STEPS, "description": "calls of tools, at most"},
    },
    "dependentRequired": {"max_steps": ["use_tools"]},
}


def coding_input(runs: Mapping[str, Any]) -> JsonObject:
    """The schema of the input of CODE_GEN by a model: ``runs`` is that of the tool that runs the code."""
    given = runs.get("properties", {})
    properties: JsonObject = {name: schema for name, schema in given.items() if name != CODE}
    properties["output_schema"] = _OUTPUT_SCHEMA
    properties[WHOLE_REQUEST] = {"type": "string", "description": "the prompt that the program is one step of"}
    properties["max_repairs"] = {"type": "integer", "minimum": 0, "maximum": MAX_REPAIRS}
    kept: JsonObject = {name: value for name, value in runs.items() if name in ("$schema", "$defs")}
    return {**kept, "type": "object", "properties": properties}


def data_of(input: JsonObject, schema: Mapping[str, Any]) -> JsonObject:
    """What is data in an input: all that ``schema`` gives no meaning."""
    return {name: value for name, value in input.items() if name not in schema["properties"]}


def schema_fault(schema: Json) -> str | None:
    """What is wrong with a JSON Schema, which is held to bounds; None: nothing."""
    if not isinstance(schema, dict):
        return "is no JSON Schema: it must be an object"
    try:
        Draft202012Validator.check_schema(tamed(schema))
    except SchemaError as error:
        return f"is no JSON Schema: {error.message[:300]}"
    except ValueError as error:
        return str(error)
    return None
