"""text.template and json.query."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from rayloom.dag.errors import Refused
from rayloom.tools.builtin import evaluate
from rayloom.tools.builtin.guard import evaluate as evaluate_guarded
from rayloom.tools.native import AnyJson, ToolInput, json_bytes, native
from rayloom.tools.tool import ToolContext, ToolResult

MAX_SOURCE_CHARS: Final = 1_000_000


class TemplateInput(ToolInput):
    """A Jinja template and what it may name."""

    template: Annotated[str, Field(max_length=MAX_SOURCE_CHARS)]
    values: dict[str, AnyJson] = Field(default_factory=dict)


class QueryInput(ToolInput):
    """A JMESPath query and what it looks at."""

    data: AnyJson
    query: Annotated[str, Field(min_length=1, max_length=65_536)]


async def _template(input: TemplateInput, context: ToolContext) -> ToolResult:
    settings = context.settings
    values: dict[str, Any] = dict(input.values)
    if evaluate.is_plain_template(input.template, len(json_bytes(input.values, "/values"))):
        text = evaluate.render(input.template, values, max_chars=settings.evaluation_max_bytes)
    else:
        text = await evaluate_guarded(
            {
                "kind": "template",
                "template": input.template,
                "values": values,
                "max_chars": settings.evaluation_max_bytes,
            },
            settings,
        )
    if len(text.encode()) > settings.evaluation_max_bytes:
        raise Refused("OUTPUT_TOO_LARGE", f"the template gives more than {settings.evaluation_max_bytes} bytes")
    return ToolResult(output={"text": text})


async def _query(input: QueryInput, context: ToolContext) -> ToolResult:
    data: Any = input.data
    if evaluate.is_plain_query(input.query, len(json_bytes(data, "/data"))):
        return ToolResult(output={"result": evaluate.search(input.query, data)})
    found = await evaluate_guarded({"kind": "query", "query": input.query, "data": data}, context.settings)
    return ToolResult(output={"result": found})


TEMPLATE = native(
    "text.template",
    TemplateInput,
    _template,
    description="Renders a Jinja template in a sandbox: {template, values} -> {text}. A name without a value is an "
    "error; nothing is escaped for HTML unless the template says `| e`.",
    permission_level="read",
    output_schema={
        "type": "object",
        "required": ["text"],
        "additionalProperties": False,
        "properties": {"text": {"type": "string"}},
    },
    deterministic=True,
    instant=True,
    breaker=False,
)
QUERY = native(
    "json.query",
    QueryInput,
    _query,
    description="Asks JSON a JMESPath query: {data, query} -> {result}; null where the path leads nowhere.",
    permission_level="read",
    output_schema={
        "type": "object",
        "required": ["result"],
        "additionalProperties": False,
        "properties": {"result": {}},
    },
    deterministic=True,
    instant=True,
    breaker=False,
)
