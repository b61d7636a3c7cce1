"""A native tool: a pydantic model of the input, which yields the schema, and a coroutine that does the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import ErrorDetails

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.tool import LIGHT, PermissionLevel, ToolContext, ToolLane, ToolResult, ToolSpec

AnyJson = Annotated[JsonValue, WithJsonSchema({})]
"""Any JSON value, as a field of an input."""


class _PlainSchema(GenerateJsonSchema):
    """Without a title for every field: it would only repeat the field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class ToolInput(BaseModel):
    """The base of every input: no unknown fields, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


InputT = TypeVar("InputT", bound=ToolInput)
Body = Callable[[InputT, ToolContext], Awaitable[ToolResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeTool(Generic[InputT]):
    """A tool written in Python: satisfies ``Tool``."""

    spec: ToolSpec
    model: type[InputT]
    body: Body[InputT]

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        """Parse the input and do the work. Raises UserError (``INPUT_INVALID``) for what the schema can't say."""
        try:
            parsed = _parsed(self.model, input)
        except ValidationError as error:
            raise UserError("INPUT_INVALID", _faults(error)) from None
        return await self.body(parsed, context)


def native(
    name: str,
    model: type[InputT],
    body: Body[InputT],
    *,
    description: str,
    permission_level: PermissionLevel,
    output_schema: Mapping[str, Json] | None = None,
    version: str = "1",
    resources: Mapping[str, float] = LIGHT,
    lane: ToolLane = "shared",
    deterministic: bool = False,
    instant: bool = False,
    shared_cache: bool = False,
    uses_workspace: bool = False,
    breaker: bool = True,
) -> NativeTool[InputT]:
    """A native tool from its input model and its body."""
    spec = ToolSpec(
        name=name,
        type="NATIVE",
        description=description,
        version=version,
        input_schema={
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **model.model_json_schema(schema_generator=_PlainSchema),
        },
        output_schema=output_schema,
        permission_level=permission_level,
        resources=dict(resources),
        lane=lane,
        deterministic=deterministic,
        instant=instant,
        shared_cache=shared_cache,
        uses_workspace=uses_workspace,
        breaker=breaker,
    )
    return NativeTool(spec=spec, model=model, body=body)


def _parsed(model: type[InputT], input: dict[str, Json]) -> InputT:
    """The input as its model; ``2.0`` is an integer, too, as JSON Schema has it. Raises ValidationError."""
    try:
        return model.model_validate(input)
    except ValidationError as error:
        places = [fault["loc"] for fault in error.errors(include_url=False) if _is_whole(fault)]
        if not places:
            raise
    input = deepcopy(input)
    for place in places:
        _make_whole(input, place)
    return model.model_validate(input)


def _make_whole(input: Any, place: tuple[int | str, ...]) -> None:
    holder, key, item = input, place[0], input
    for step in place:
        # A step may name a member of a union, which is nowhere in the input.
        with suppress(LookupError, TypeError):
            holder, key, item = item, step, item[step]
    if isinstance(item, float):
        holder[key] = int(item)


def _is_whole(fault: ErrorDetails) -> bool:
    value = fault["input"]
    return fault["type"] == "int_type" and isinstance(value, float) and abs(value) < 2**63 and value.is_integer()


def json_bytes(value: Json, pointer: str) -> bytes:
    """A part of an input as JSON. Raises UserError (``INPUT_INVALID``) for what no JSON can carry."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise UserError("INPUT_INVALID", f"{pointer}: it can't be written as JSON: {error}") from None


def _faults(error: ValidationError) -> str:
    def pointer(location: tuple[int | str, ...]) -> str:
        return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location) or "/"

    return "; ".join(f"{pointer(fault['loc'])}: {fault['msg']}" for fault in error.errors(include_url=False)[:5])
