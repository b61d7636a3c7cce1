"""A Skill as a tool: gives its instructions, then its files, one by one, and runs its scripts in the sandbox."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, model_validator

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.values import Json
from rayloom.tools.builtin.code import OUTPUT_SCHEMA, RunInput, run_source
from rayloom.tools.native import NativeTool, native
from rayloom.tools.paths import MAX_CHARS, workspace_path
from rayloom.tools.ports import ContentsPort
from rayloom.tools.skills.script import start_of
from rayloom.tools.skills.skill import Skill, SkillFile, loaded
from rayloom.tools.tool import LIGHT, SANDBOXED, PermissionLevel, ToolContext, ToolResult

MAX_ARGS: Final = 256
MAX_ARG_CHARS: Final = 64 * 1024
_ONE_WISH: Final = "give nothing for the instructions, `read` for a file, or `script` (with args, stdin, …) to run one"

Path = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]


class SkillInput(RunInput):
    """Nothing: the instructions. ``read``: one file. ``script``: run one, with the Skill's folder as workspace."""

    # What the validator below says, for those who read only the schema.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"maxProperties": 0},
                {"required": ["read"], "maxProperties": 1, "properties": {"read": {"type": "string"}}},
                {"required": ["script"], "properties": {"script": {"type": "string"}, "read": False}},
            ],
            "errorMessage": _ONE_WISH,
        }
    )

    read: Path | None = None
    script: Path | None = None
    args: Annotated[list[Annotated[str, Field(max_length=MAX_ARG_CHARS)]], Field(max_length=MAX_ARGS)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _one_wish(self) -> SkillInput:
        given = self.model_fields_set
        has_one = (self.read is None) != (self.script is None) and (self.read is None or len(given) == 1)
        if given and not has_one:
            raise ValueError(_ONE_WISH)
        return self


async def activated(contents: ContentsPort, version: str) -> Skill:
    """The Skill of this version, with its instructions: for the tool, and for a model that is to go by them.

    Raises what ``contents`` raises.
    """
    # Nobody has said yet how large it is.
    return loaded((await contents.get({version: 0}))[version])


def skill_tool(*, name: str, description: str, version: str, level: PermissionLevel) -> NativeTool[SkillInput]:
    """The tool ``skill.<name>``. ``version`` is the digest of the Skill as the blob store keeps it."""

    async def body(input: SkillInput, context: ToolContext) -> ToolResult:
        skill = await activated(context.contents, version)
        if input.script is not None:
            return await _run(skill, input.script, input, context)
        if input.read is not None:
            return await _read(skill, input.read, context)
        files: list[Json] = [{"path": file.path, "size": file.size} for file in skill.files]
        return ToolResult(output={"instructions": skill.instructions, "files": files})

    made = native(
        name,
        SkillInput,
        body,
        description=description,
        permission_level=level,
        version=version,
        output_schema=_OUTPUT_SCHEMA,
        resources=SANDBOXED if level == RUNS else LIGHT,
        lane="own" if level == RUNS else "shared",
        breaker=False,
    )
    return replace(made, spec=replace(made.spec, type="SKILL"))


RUNS: Final[PermissionLevel] = "execute"
"""The level of a Skill that brings scripts; the others only give texts."""


def level_of(skill: Skill) -> PermissionLevel:
    """What somebody must be allowed who uses it."""
    return RUNS if skill.has_scripts else "read"


async def _read(skill: Skill, path: str, context: ToolContext) -> ToolResult:
    file = _file(skill, path, "/read")
    most = context.settings.files_max_bytes
    if file.size > most:
        raise Refused("FILE_TOO_LARGE", f"{path} has {file.size} bytes; the limit is {most}")
    data = (await context.contents.get({file.sha256: file.size}))[file.sha256]
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    # A NUL can't be kept in an output: such a file is bytes, not text.
    if "\0" in text:
        return ToolResult(output={"base64": base64.b64encode(data).decode()})
    return ToolResult(output={"content": text})


async def _run(skill: Skill, path: str, input: SkillInput, context: ToolContext) -> ToolResult:
    if not skill.has_scripts:
        # It was registered as one that only gives texts.
        raise UserError("SCRIPT_UNSUPPORTED", f"/script: the Skill {skill.about.name} has no scripts/")
    if any("\0" in arg for arg in input.args):
        raise UserError("INPUT_INVALID", "/args: a NUL can't be handed to a program")
    script = _file(skill, path, "/script")
    kept = await context.contents.get({file.sha256: file.size for file in skill.files})
    files: Mapping[str, bytes] = {file.path: kept[file.sha256] for file in skill.files}
    start = start_of(script.path, files[script.path], input.args)
    return await run_source(start.program, start.source, input, context, beside=files)


def _file(skill: Skill, path: str, pointer: str) -> SkillFile:
    wanted = workspace_path(path)
    found = next((file for file in skill.files if file.path == wanted), None)
    if found is None:
        nearest = did_you_mean(wanted, [file.path for file in skill.files])
        raise UserError("FILE_NOT_FOUND", f"{pointer}: the Skill has no file {wanted!r}{nearest}")
    return found


def _only(**fields: Json) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "additionalProperties": False, "properties": fields}


_FILE: Final = _only(path={"type": "string"}, size={"type": "integer"})
_OUTPUT_SCHEMA: Final[dict[str, Json]] = {
    "oneOf": [
        _only(instructions={"type": "string"}, files={"type": "array", "items": _FILE}),
        _only(content={"type": "string"}),
        _only(base64={"type": "string"}),
        OUTPUT_SCHEMA,
    ]
}
