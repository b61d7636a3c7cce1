"""files.*: the task's workspace, the same on every node."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.values import Json
from rayloom.tools.native import ToolInput, native
from rayloom.tools.paths import MAX_CHARS, workspace_path
from rayloom.tools.sandbox.workspace import media_type
from rayloom.tools.tool import ToolContext, ToolResult

Path = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]

_ONE_CONTENT: Final = "give either content or base64"


class WriteInput(ToolInput):
    """A file to store: text, or bytes as base64."""

    # What the validator below says, for those who read only the schema.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("content", "base64")],
            "errorMessage": _ONE_CONTENT,
        }
    )

    path: Path
    content: str | None = None
    base64: str | None = None

    @model_validator(mode="after")
    def _one_content(self) -> WriteInput:
        if (self.content is None) == (self.base64 is None):
            raise ValueError(_ONE_CONTENT)
        return self


class ReadInput(ToolInput):
    """A file to read."""

    path: Path


class ListInput(ToolInput):
    """Nothing."""


async def _write(input: WriteInput, context: ToolContext) -> ToolResult:
    path = workspace_path(input.path)
    try:
        if input.base64 is not None:
            data = base64.b64decode(input.base64, validate=True)
        else:
            data = (input.content or "").encode()
    except (binascii.Error, UnicodeEncodeError, ValueError) as error:
        raise UserError("CONTENT_INVALID", f"{path}: {error}") from None
    _check_size(path, len(data), context)
    await context.files.write(path, data, media_type(path))
    return ToolResult(output={"path": path, "size": len(data)})


async def _read(input: ReadInput, context: ToolContext) -> ToolResult:
    path = workspace_path(input.path)
    data = await context.files.read(path)
    _check_size(path, len(data), context)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    # A NUL can't be kept in an output: such a file is bytes, not text.
    if "\0" in text:
        return ToolResult(output={"base64": base64.b64encode(data).decode()})
    return ToolResult(output={"content": text})


async def _list(_input: ListInput, context: ToolContext) -> ToolResult:
    files: list[Json] = [
        {"path": entry["path"], "size": entry["size"], "sha256": entry["sha256"]}
        for entry in await context.files.list()
    ]
    return ToolResult(output={"files": files})


def _check_size(path: str, size: int, context: ToolContext) -> None:
    if size > context.settings.files_max_bytes:
        raise Refused("FILE_TOO_LARGE", f"{path} has {size} bytes; the limit is {context.settings.files_max_bytes}")


_ENTRY: Final[dict[str, Json]] = {
    "type": "object",
    "required": ["path", "size", "sha256"],
    "properties": {"path": {"type": "string"}, "size": {"type": "integer"}, "sha256": {"type": "string"}},
}

WRITE = native(
    "files.write",
    WriteInput,
    _write,
    description="Stores a file in the task's workspace: {path, content | base64} -> {path, size}.",
    permission_level="write",
    uses_workspace=True,
    output_schema={
        "type": "object",
        "required": ["path", "size"],
        "additionalProperties": False,
        "properties": {"path": {"type": "string"}, "size": {"type": "integer"}},
    },
    breaker=False,
)
READ = native(
    "files.read",
    ReadInput,
    _read,
    description="Reads a file of the task's workspace: {path} -> {content}, or {base64} where it isn't UTF-8 text.",
    permission_level="read",
    uses_workspace=True,
    output_schema={
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {"content": {"type": "string"}, "base64": {"type": "string"}},
    },
    breaker=False,
)
LIST = native(
    "files.list",
    ListInput,
    _list,
    description="Lists the task's workspace: {} -> {files: [{path, size, sha256}]}.",
    permission_level="read",
    uses_workspace=True,
    output_schema={
        "type": "object",
        "required": ["files"],
        "additionalProperties": False,
        "properties": {"files": {"type": "array", "items": _ENTRY}},
    },
    breaker=False,
)
