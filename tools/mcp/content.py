"""What a tool of an MCP server gave, as the output of a subtask."""

from __future__ import annotations

from typing import Any, Final

from mcp_types import CallToolResult, TextContent

from rayloom.dag.errors import Bug, UserError
from rayloom.dag.values import Json, JsonObject

TOOL_FAILED: Final = "MCP_TOOL_FAILED"


def output_of(result: CallToolResult, *, structured: bool) -> Json:
    """The structured content where there is some; else the text of a result that is one text; else all its items.

    ``structured``: the tool declares what it gives, so null may be meant. Raises UserError (``MCP_TOOL_FAILED``) where
    the tool says that it failed, with all that it says.
    """
    if result.is_error:
        raise UserError(TOOL_FAILED, _text(result) or "the tool failed and did not say why")
    if result.structured_content is not None or (structured and "structured_content" in result.model_fields_set):
        content: Json = result.structured_content
        return content
    if len(result.content) == 1 and isinstance(result.content[0], TextContent):
        return result.content[0].text
    blocks = [block.model_dump(by_alias=True, mode="json", exclude_none=True) for block in result.content]
    return {"content": [_item(block) for block in blocks]}


def check_structured(result: CallToolResult, tool: str) -> None:
    """Raise Bug (``TOOL_OUTPUT_INVALID``) where a tool that declares what it gives gave something else."""
    if (
        not result.is_error
        and result.structured_content is None
        and "structured_content" not in result.model_fields_set
    ):
        raise Bug("TOOL_OUTPUT_INVALID", f"{tool} has an output schema, and gave no structured content")


def _item(block: dict[str, Any]) -> JsonObject:
    """An item as the protocol writes it, without what is for its own use. Contents stay base64."""
    return {name: value for name, value in block.items() if name not in ("_meta", "annotations", "icons")}


def _text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent)).strip()
