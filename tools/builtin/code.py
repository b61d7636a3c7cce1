"""python.run and shell.run: foreign code, in the sandbox."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Annotated, Final

from pydantic import Field

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.native import AnyJson, ToolInput, native
from rayloom.tools.paths import workspace_path
from rayloom.tools.sandbox.sandbox import Program, RunResult, RunSpec
from rayloom.tools.sandbox.select import sandbox_for
from rayloom.tools.settings import SandboxLimits, ToolSettings
from rayloom.tools.tool import SANDBOXED, ToolContext, ToolResult

MAX_SOURCE_CHARS: Final = 1_000_000
MAX_INPUT_FILES: Final = 256
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_SHARED_TEXT: Final = (
    "It runs in a sandbox without network, in an empty workspace that `files` are put into; files that it creates or "
    "changes there come back in `files`. A program that fails, overruns its time or its memory is a result, not an "
    "error of the tool: look at `exit_code`, `timed_out` and `oom`."
)


class Base64File(ToolInput):
    """A file that isn't text."""

    base64: str


class LimitsInput(ToolInput):
    """Limits of this run; the settings' caps hold."""

    wall_s: Annotated[float, Field(gt=0)] | None = None
    memory_mb: Annotated[int, Field(gt=0)] | None = None
    pids: Annotated[int, Field(gt=0)] | None = None
    output_kb: Annotated[int, Field(gt=0)] | None = None
    disk_mb: Annotated[int, Field(gt=0)] | None = None


class RunInput(ToolInput):
    """What both tools take."""

    stdin: str | None = None
    files: dict[str, str | Base64File] | None = None
    packages: list[str] | None = None
    limits: LimitsInput | None = None
    network: AnyJson = None


class PythonInput(RunInput):
    """A Python program."""

    code: Annotated[str, Field(max_length=MAX_SOURCE_CHARS)]


class ShellInput(RunInput):
    """A program of the POSIX shell."""

    command: Annotated[str, Field(max_length=MAX_SOURCE_CHARS)]


async def _python(input: PythonInput, context: ToolContext) -> ToolResult:
    return await _run("python", input.code, input, context)


async def _shell(input: ShellInput, context: ToolContext) -> ToolResult:
    return await _run("shell", input.command, input, context)


async def _run(program: Program, source: str, input: RunInput, context: ToolContext) -> ToolResult:
    if input.packages:
        raise UserError("PACKAGES_UNSUPPORTED", "`packages` is not supported in this version: leave it out")
    if input.network not in (None, False, "none"):
        raise UserError("NETWORK_UNSUPPORTED", "`network` is not supported in this version: the sandbox has none")
    settings = context.settings
    limits = capped(input.limits, settings)
    result = await sandbox_for(settings.sandbox).run(
        RunSpec(
            program=program,
            source=_encoded(source, "/code" if program == "python" else "/command"),
            stdin=_encoded(input.stdin or "", "/stdin"),
            files=_files(input, limits),
            limits=limits,
            files_max_count=settings.sandbox_files_max_count,
            files_max_bytes=settings.sandbox_files_max_bytes,
            on_line=lambda stream, line: context.log.line(line, stream=stream),
        )
    )
    return ToolResult(output=_output(result), stdout=result.stdout, stderr=result.stderr)


def capped(wanted: LimitsInput | None, settings: ToolSettings) -> SandboxLimits:
    """The limits of a run: what it asks for, else the defaults, never above the caps."""
    asked = wanted.model_dump(exclude_none=True) if wanted else {}
    caps = settings.sandbox_caps.model_dump()
    given = {**settings.sandbox_defaults.model_dump(), **asked}
    return SandboxLimits(**{name: min(value, caps[name]) for name, value in given.items()})


def _files(input: RunInput, limits: SandboxLimits) -> dict[str, bytes]:
    given = input.files or {}
    if len(given) > MAX_INPUT_FILES:
        raise UserError("FILES_TOO_MANY", f"/files: at most {MAX_INPUT_FILES} files")
    files: dict[str, bytes] = {}
    for path, content in given.items():
        if isinstance(content, str):
            data = _encoded(content, f"/files/{path}")
        else:
            try:
                data = base64.b64decode(content.base64, validate=True)
            except (binascii.Error, ValueError) as error:
                raise UserError("BASE64_INVALID", f"/files/{path}: {error}") from None
        name = workspace_path(path)
        if name in files:
            raise UserError("PATH_INVALID", f"/files: {name!r} is given twice")
        files[name] = data
    for name in files:
        if any(other.startswith(name + "/") for other in files):
            raise UserError("PATH_INVALID", f"/files: {name!r} is both a file and a folder")
    # A file takes whole pages of the memory that it lies in.
    if sum(-(-len(data) // PAGE_BYTES) for data in files.values()) * PAGE_BYTES > limits.disk_mb * 1024 * 1024:
        raise UserError("FILES_TOO_LARGE", f"/files: more than the workspace's {limits.disk_mb} MiB")
    return files


def _encoded(text: str, pointer: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError("TEXT_INVALID", f"{pointer}: lone surrogates are not text") from None


def _output(result: RunResult) -> dict[str, Json]:
    files: dict[str, Json] = {
        path: {"base64": base64.b64encode(file.data).decode(), "size": len(file.data), "media_type": file.media_type}
        for path, file in result.files.items()
    }
    return {
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "truncated": result.truncated,
        "timed_out": result.timed_out,
        "oom": result.oom,
        "duration_ms": result.duration_ms,
        "backend": result.backend,
        "files": files,
    }


_OUTPUT_SCHEMA: Final[dict[str, Json]] = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "exit_code",
        "stdout",
        "stderr",
        "truncated",
        "timed_out",
        "oom",
        "duration_ms",
        "backend",
        "files",
    ],
    "properties": {
        "exit_code": {"type": "integer"},
        "stdout": {"type": "string"},
        "stderr": {"type": "string"},
        "truncated": {"type": "boolean"},
        "timed_out": {"type": "boolean"},
        "oom": {"type": "boolean"},
        "duration_ms": {"type": "integer"},
        "backend": {"type": "string"},
        "files": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["base64", "size", "media_type"],
                "properties": {
                    "base64": {"type": "string"},
                    "size": {"type": "integer"},
                    "media_type": {"type": "string"},
                },
            },
        },
    },
}

PYTHON_RUN = native(
    "python.run",
    PythonInput,
    _python,
    description=f"Runs Python `code` with the standard library. {_SHARED_TEXT}",
    permission_level="execute",
    output_schema=_OUTPUT_SCHEMA,
    resources=SANDBOXED,
    lane="own",
)
SHELL_RUN = native(
    "shell.run",
    ShellInput,
    _shell,
    description=f"Runs a `command` of the POSIX shell. {_SHARED_TEXT}",
    permission_level="execute",
    output_schema=_OUTPUT_SCHEMA,
    resources=SANDBOXED,
    lane="own",
)
