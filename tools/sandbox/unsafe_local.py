"""No sandbox at all: a plain child process with the worker's own rights. Only ever used when it is asked for by name.

Time, memory, output and the number of processes are bounded as in a sandbox; nothing else is. The program reads what
the worker can read, reaches the network, and may leave processes behind that detach themselves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox import processes, workspace
from rayloom.tools.sandbox.result import result_of
from rayloom.tools.sandbox.sandbox import PATH, RunResult, RunSpec, SandboxReport
from rayloom.tools.sandbox.supervisor import Child, Verdict, cant_start

_LAUNCHER: Final = 'echo; read -r go || exit 125; exec "$@" <../stdin'


class UnsafeLocal:
    """Runs programs unprotected."""

    name: Final = "unsafe-local"

    async def probe(self) -> SandboxReport:
        """What this is: nothing that isolates."""
        return SandboxReport(
            backend=self.name,
            version=sys.version.split()[0],
            isolated=False,
            memory_limit="sampled",
            notes=("programs run unprotected, with the rights of the worker",),
        )

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program; see ``Sandbox.run``."""
        if spec.egress is not None:
            raise Refused("NETWORK_REFUSED", "without a sandbox nothing holds a program to an allow-list")
        folder = Path(tempfile.mkdtemp(prefix="rayloom-unsafe-"))
        try:
            return await _run(folder, spec)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


async def _run(folder: Path, spec: RunSpec) -> RunResult:
    place = folder / "workspace"
    await asyncio.to_thread(_fill, folder, spec)
    program = sys.executable if spec.program == "python" else "/bin/sh"
    limits = processes.limits_script(spec.limits, address_space=True, processes=False)
    verdict: Verdict = "exited"
    with ExitStack() as stack:
        root = os.open(place, os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        try:
            child = Child(
                ["sh", "-c", f"{limits}; {_LAUNCHER}", "sh", program, str(folder / "main")],
                executable="/bin/sh",
                env={
                    "HOME": str(place),
                    "LANG": "C.UTF-8",
                    "PATH": PATH,
                    "PYTHONDONTWRITEBYTECODE": "1",
                    "PYTHONPATH": ":".join(map(str, filter(None, (place, spec.packages)))),
                    "PYTHONUNBUFFERED": "1",
                },
                limits=spec.limits,
                on_line=spec.on_line,
                cwd=str(place),
                handshake=True,
            )
        except OSError as error:
            raise cant_start("a shell", error) from error
        try:
            if not await child.started():
                raise Transient("SANDBOX_START_FAILED", "the program's shell ended before it began")
            started_at = time.monotonic()
            child.release()
            verdict = await child.watch()
        finally:
            await child.close()
        duration_ms = round((time.monotonic() - started_at) * 1000)
        files, left_out = await workspace.collected(
            root, spec.files, max_count=spec.files_max_count, max_bytes=spec.files_max_bytes
        )
    return result_of(
        child, spec, verdict, duration_ms=duration_ms, files=files, left_out=left_out, backend=UnsafeLocal.name
    )


def _fill(folder: Path, spec: RunSpec) -> None:
    (folder / "main").write_bytes(spec.source)
    (folder / "stdin").write_bytes(spec.stdin)
    place = folder / "workspace"
    place.mkdir()
    for path, data in spec.files.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
