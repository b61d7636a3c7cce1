"""The protocol of sandboxes: what is asked of one run, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from rayloom.tools.settings import SandboxLimits as Limits

Program = Literal["python", "shell"]
Output = Literal["stdout", "stderr"]
LineSink = Callable[[Output, str], None]

PATH: Final = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PATH": PATH,
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/workspace",
    "PYTHONUNBUFFERED": "1",
    "TMPDIR": "/tmp",
}
"""What a program finds in its environment, whatever kind of sandbox it runs in."""
KILLED = 137
"""The exit code of a run that we killed: 128 + SIGKILL, as a shell would say it."""


def ignore_line(_stream: Output, _line: str) -> None:
    """A sink for those who want no lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run: a program's source, what it may read, what it may use.

    ``files`` are put into the workspace, which is the working directory; paths are relative and already checked.
    ``on_line`` is called for each kept line of output while the program runs.
    ``egress``: a folder of `egress.opened`, through which the program reaches what it may; None: it has no network.
    ``hosts``: for a sandbox elsewhere, which no socket of ours reaches: the names that the program may reach, with the
    address of each, see `remote_network`.
    ``packages``: the folder of a `packages.opened` set that the program can import from, or None.
    ``files_max_count`` and ``files_max_bytes`` cap what is brought back.
    """

    program: Program
    source: bytes
    limits: Limits
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    egress: Path | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    packages: Path | None = None
    files_max_count: int = 256
    files_max_bytes: int = 16 * 1024 * 1024
    on_line: LineSink = ignore_line


@dataclass(frozen=True, slots=True, kw_only=True)
class OutFile:
    """A file that the run created or changed."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended. A program that fails, overruns its time or its memory is a result, not an error.

    ``truncated``: output or files were left out for their size. ``oom``: killed for its memory.
    """

    exit_code: int
    stdout: str
    stderr: str
    truncated: bool
    timed_out: bool
    oom: bool
    duration_ms: int
    backend: str
    files: Mapping[str, OutFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """What a sandbox found out about the machine: for ``status`` and ``doctor``."""

    backend: str
    version: str
    isolated: bool
    memory_limit: Literal["cgroup", "sampled"]
    notes: tuple[str, ...] = ()


class Sandbox(Protocol):
    """Where foreign code runs."""

    @property
    def name(self) -> str:
        """The name that results carry as ``backend``."""

    async def probe(self) -> SandboxReport:
        """Try it for real, once a process.

        Raises Refused (``SANDBOX_UNAVAILABLE``) with the reason, and Transient (``SANDBOX_START_FAILED``).
        """

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program to its end, its limit, or its cancellation; nothing of it is left behind.

        Raises Refused (``SANDBOX_UNAVAILABLE``), Transient (``SANDBOX_START_FAILED``, and ``SANDBOX_LOST`` where one
        elsewhere is gone in the middle) and UserError (``FILES_TOO_LARGE``, ``LIMITS_TOO_SMALL``).
        """
