"""The form that a subtask wants its result in, and what is wrong with a value that should have it."""

from __future__ import annotations

from rayloom.dag.errors import Bug, UserError
from rayloom.dag.tame_schema import tamed
from rayloom.dag.thinking import schema_fault
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import schema_faults


def wanted_schema(input: JsonObject) -> JsonObject | None:
    """The schema that the result must fit, without patterns; None: any text. Raises UserError (``SCHEMA_INVALID``)."""
    schema = input.get("output_schema")
    if not isinstance(schema, dict):
        return None
    fault = schema_fault(schema)
    if fault is not None:
        raise UserError("SCHEMA_INVALID", f"/output_schema: {fault}")
    return tamed(schema)


def unfit(schema: JsonObject, value: Json) -> list[str]:
    """What is wrong with a value, each as ``pointer: message``. Raises UserError (``SCHEMA_INVALID``)."""
    try:
        return schema_faults(schema, value, of="output_schema")
    except Bug as error:
        # Not ours: whoever asked brought the schema along.
        raise UserError("SCHEMA_INVALID", f"/output_schema: {error.message}") from None
