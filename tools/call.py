"""One call of a tool: input checked, work done, output checked, foreign errors named."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from rayloom.dag.errors import Bug, RayloomError, UserError
from rayloom.dag.input_check import message_of
from rayloom.dag.schema_depth import BoundedValidator, TooDeep, errors_of
from rayloom.dag.values import Json
from rayloom.tools.tool import Tool, ToolContext, ToolResult

MAX_FAULTS = 10
MAX_FAULT_CHARS = 300
MAX_VALIDATORS = 512

_known: dict[int, tuple[Mapping[str, Json], Validator]] = {}


async def call_tool(tool: Tool, input: Json, context: ToolContext) -> ToolResult:
    """Check the input and run a tool once. Raises what ``checked`` and ``run_tool`` raise."""
    return await run_tool(tool, checked(tool, input), context)


def checked(tool: Tool, input: Json) -> dict[str, Json]:
    """The input, which fits the tool's schema.

    Raises UserError (``INPUT_INVALID``, with a JSON pointer for every fault), and Bug (``TOOL_SCHEMA_INVALID``).
    """
    spec = tool.spec
    faults = schema_faults(spec.input_schema, input, of=spec.name)
    if faults:
        raise UserError("INPUT_INVALID", f"the input of {spec.name} is invalid: {'; '.join(faults)}")
    if not isinstance(input, dict):
        raise UserError("INPUT_INVALID", f"the input of {spec.name} must be an object")
    return input


async def run_tool(tool: Tool, input: dict[str, Json], context: ToolContext) -> ToolResult:
    """Run a tool once with an input that fits.

    Raises what the tool raises of ours, UserError (``OUTPUT_TOO_DEEP``) where the output can't be checked, and Bug
    (``TOOL_CRASHED``, ``TOOL_OUTPUT_INVALID``, ``TOOL_SCHEMA_INVALID``) for everything that only its author can mend.
    """
    spec = tool.spec
    try:
        result = await tool.run(input, context)
    except RayloomError:
        raise
    except Exception as error:
        raise Bug("TOOL_CRASHED", f"{spec.name} raised {type(error).__name__}: {error}") from error
    if not isinstance(result, ToolResult):
        raise Bug("TOOL_OUTPUT_INVALID", f"{spec.name} returned {type(result).__name__} in place of a ToolResult")
    if spec.output_schema is not None:
        try:
            faults = _faults(spec.output_schema, result.output, spec.name)
        except TooDeep as error:
            raise UserError("OUTPUT_TOO_DEEP", f"the output of {spec.name} can't be checked: {error}") from None
        if faults:
            raise Bug("TOOL_OUTPUT_INVALID", f"{spec.name} broke its output schema: {'; '.join(faults)}")
    return result


def schema_faults(schema: Mapping[str, Json], value: Json, *, of: str) -> list[str]:
    """The faults of a value, each as ``pointer: message``. Raises Bug (``TOOL_SCHEMA_INVALID``)."""
    try:
        return _faults(schema, value, of)
    except TooDeep as error:
        return [f"/: can't be checked: {error}"]


def _faults(schema: Mapping[str, Json], value: Json, of: str) -> list[str]:
    validator = _validator_of(schema, of)
    try:
        return [
            f"{_pointer(error)}: {message_of(error)[:MAX_FAULT_CHARS]}"
            for error in islice(errors_of(validator, value), MAX_FAULTS)
        ]
    except Unresolvable as error:
        raise Bug("TOOL_SCHEMA_INVALID", f"the schema of {of} refers to what it does not hold: {error}") from None


def _validator_of(schema: Mapping[str, Json], of: str) -> Validator:
    """A tool's schema is the same object from call to call; what is kept with it keeps it alive."""
    known = _known.get(id(schema))
    if known is None:
        if len(_known) >= MAX_VALIDATORS:
            _known.clear()
        known = _known.setdefault(id(schema), (schema, _validator(orjson.dumps(schema), of)))
    return known[1]


@lru_cache(maxsize=MAX_VALIDATORS)
def _validator(schema_json: bytes, of: str) -> Validator:
    schema = orjson.loads(schema_json)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise Bug("TOOL_SCHEMA_INVALID", f"the schema of {of} is invalid: {error.message}") from error
    # An empty registry: a $ref to an address must never make us fetch it.
    validator: Validator = BoundedValidator(schema, registry=Registry())
    return validator


def _pointer(error: ValidationError) -> str:
    path = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in error.absolute_path)
    return path or "/"
