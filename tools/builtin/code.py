"""python.run and shell.run: foreign code, in the sandbox."""

from __future__ import annotations

import base64
import binascii
import os
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Final, Literal

import orjson
from pydantic import Field

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.values import Json
from rayloom.tools.addresses import AddressRules
from rayloom.tools.native import ToolInput, native
from rayloom.tools.paths import workspace_path
from rayloom.tools.sandbox import egress, packages, remote_network
from rayloom.tools.sandbox.installer import Installer
from rayloom.tools.sandbox.sandbox import Program, RunResult, RunSpec
from rayloom.tools.sandbox.select import sandbox_for
from rayloom.tools.settings import SandboxLimits, ToolSettings
from rayloom.tools.tool import SANDBOXED, ToolContext, ToolResult

MAX_SOURCE_CHARS: Final = 1_000_000
MAX_INPUT_FILES: Final = 256
PIECE_CHARS: Final = 65_536
NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_SHARED_TEXT: Final = (
    "It runs in a sandbox, in an empty workspace that `files` are put into; files that it creates or changes there "
    "come back in `files`. It has no network; with `network: {allow: [host:port, ...]}` it reaches those, by the "
    "proxy that `http_proxy` and `https_proxy` name. A program that fails, overruns its time or its memory is a "
    "result, not an error of the tool: look at `exit_code`, `timed_out` and `oom`."
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
    cpus: Annotated[float, Field(gt=0)] | None = None


class NetworkInput(ToolInput):
    """What a run may reach: ``host:port`` each, through a proxy (``http_proxy``, ``https_proxy``)."""

    allow: list[str]


class RunInput(ToolInput):
    """What both tools take."""

    stdin: str | None = None
    files: dict[str, str | Base64File] | None = None
    packages: list[str] | None = None
    limits: LimitsInput | None = None
    network: NetworkInput | Literal["none", False] | None = None


class PythonInput(RunInput):
    """A Python program."""

    code: Annotated[str, Field(max_length=MAX_SOURCE_CHARS)]


class ShellInput(RunInput):
    """A program of the POSIX shell."""

    command: Annotated[str, Field(max_length=MAX_SOURCE_CHARS)]


async def _python(input: PythonInput, context: ToolContext) -> ToolResult:
    return await run_source("python", input.code, input, context)


async def _shell(input: ShellInput, context: ToolContext) -> ToolResult:
    return await run_source("shell", input.command, input, context)


async def run_source(
    program: Program, source: str, input: RunInput, context: ToolContext, *, beside: Mapping[str, bytes] = NOTHING
) -> ToolResult:
    """Run a program in the sandbox; ``beside``: files, by checked paths, that are there beside those of the input.

    Raises UserError, and what ``Sandbox.run`` raises.
    """
    settings = context.settings
    limits = capped(input.limits, settings)
    spec = RunSpec(
        program=program,
        source=_encoded(source, "/code" if program == "python" else "/command"),
        stdin=_encoded(input.stdin or "", "/stdin"),
        files=_files(input, limits, beside),
        limits=limits,
        files_max_count=settings.sandbox_files_max_count,
        files_max_bytes=settings.sandbox_files_max_bytes,
        on_line=lambda stream, line: context.log.line(line, stream=stream),
    )
    sandbox = sandbox_for(settings.sandbox, settings.docker, settings.e2b)
    async with AsyncExitStack() as held:
        if input.packages:
            found = await held.enter_async_context(packages.opened(input.packages, _installer(settings)))
            for each in found.packages:
                context.log.line(f"package {each}")
            spec = replace(spec, packages=found.folder)
        if isinstance(input.network, NetworkInput) and input.network.allow:
            targets = egress.allowed(input.network.allow)
            if settings.sandbox == "e2b":
                spec = replace(spec, hosts=await remote_network.hosts(targets))
            else:
                rules = AddressRules.parse(settings.allow_addresses)
                told = partial(context.log.line, level="WARNING")
                opened = egress.opened(targets, rules, on_refusal=lambda why: told(f"network: {why}"))
                spec = replace(spec, egress=await held.enter_async_context(opened))
        result = await sandbox.run(spec)
    return ToolResult(output=_output(result, settings.sandbox_caps), stdout=result.stdout, stderr=result.stderr)


def _installer(settings: ToolSettings) -> Installer:
    """What packages are had from; raises Refused (``PACKAGES_REFUSED``) where that is nothing."""
    if settings.sandbox == "e2b":
        raise Refused("PACKAGES_REFUSED", "programs run elsewhere, in a template: it must bring the packages itself")
    wheels, index = settings.sandbox_packages_dir, settings.sandbox_packages_index_url.get_secret_value()
    if wheels is None and not index:
        raise Refused(
            "PACKAGES_REFUSED",
            "nobody has set up packages here: RAYLOOM_SANDBOX_PACKAGES_DIR names a folder of wheels, "
            "RAYLOOM_SANDBOX_PACKAGES_INDEX_URL a package index",
        )
    if settings.docker.image and settings.sandbox in ("docker", "auto"):
        raise Refused("PACKAGES_REFUSED", "programs run in an image of your own: it must bring the packages itself")
    return Installer(wheels=wheels, index=index, max_bytes=settings.sandbox_packages_max_bytes)


def capped(wanted: LimitsInput | None, settings: ToolSettings) -> SandboxLimits:
    """The limits of a run: what it asks for, else the defaults, never above the caps."""
    asked = wanted.model_dump(exclude_none=True) if wanted else {}
    caps = settings.sandbox_caps.model_dump()
    given = {**settings.sandbox_defaults.model_dump(), **asked}
    return SandboxLimits(**{name: min(value, caps[name]) for name, value in given.items()})


def _files(input: RunInput, limits: SandboxLimits, beside: Mapping[str, bytes]) -> dict[str, bytes]:
    given = input.files or {}
    if len(given) > MAX_INPUT_FILES:
        raise UserError("FILES_TOO_MANY", f"/files: at most {MAX_INPUT_FILES} files")
    files = dict(beside)
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
            why = "is there already" if name in beside else "is given twice"
            raise UserError("PATH_INVALID", f"/files: {name!r} {why}")
        files[name] = data
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
    for name in files:
        if name in folders:
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


def _output(result: RunResult, caps: SandboxLimits) -> dict[str, Json]:
    # A control character is six in JSON. All that the caps let a program print and write has to fit into one output.
    most = caps.output_kb * 1024 * 9 // 8
    stdout, stderr = _beginning(result.stdout, most), _beginning(result.stderr, most)
    files: dict[str, Json] = {
        path: {"base64": base64.b64encode(file.data).decode(), "size": len(file.data), "media_type": file.media_type}
        for path, file in result.files.items()
    }
    return {
        "exit_code": result.exit_code,
        "stdout": stdout,
        "stderr": stderr,
        "truncated": result.truncated or len(stdout) < len(result.stdout) or len(stderr) < len(result.stderr),
        "timed_out": result.timed_out,
        "oom": result.oom,
        "duration_ms": result.duration_ms,
        "backend": result.backend,
        "files": files,
    }


def _beginning(text: str, most: int) -> str:
    """As much of a text as has at most so many bytes as JSON."""
    for start in range(0, len(text), PIECE_CHARS):
        piece = text[start : start + PIECE_CHARS]
        if (size := _json_bytes(piece)) > most:
            sizes = range(1, len(piece) + 1)
            return text[: start + bisect_right(sizes, most, key=lambda chars: _json_bytes(piece[:chars]))]
        most -= size
    return text


def _json_bytes(text: str) -> int:
    """The bytes of a text in JSON, without its quotes."""
    return len(orjson.dumps(text)) - 2


OUTPUT_SCHEMA: Final[dict[str, Json]] = {
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
    output_schema=OUTPUT_SCHEMA,
    resources=SANDBOXED,
    lane="own",
    breaker=False,
)
SHELL_RUN = native(
    "shell.run",
    ShellInput,
    _shell,
    description=f"Runs a `command` of the POSIX shell. {_SHARED_TEXT}",
    permission_level="execute",
    output_schema=OUTPUT_SCHEMA,
    resources=SANDBOXED,
    lane="own",
    breaker=False,
)
