"""The sandboxes of E2B: a virtual machine elsewhere for each run, thrown away after it. Only when asked for by name.

What holds is what the service holds: its machines, and that they reach nothing, or what they may. In the machine a
`guardian` of ours runs the program as nobody, within its limits. The program, its files and its output leave this
place.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.tools.sandbox.measures import Stages
from rayloom.tools.sandbox.processes import MIB
from rayloom.tools.sandbox.remote import Service
from rayloom.tools.sandbox.remote_run import RemoteRun, lifetime_s
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec, SandboxReport
from rayloom.tools.settings import E2bSettings, SandboxLimits

SWEEP_S: Final = 300.0
PROBE_S: Final = 20.0
PAGE_BYTES: Final = 4_096
"""Of the machines there, whatever this one has."""


class E2b:
    """Runs programs at an E2B service. One instance may serve many runs at once, in any event loop.

    ``tries``: its probe runs a program, which the service may charge for; else it asks whether the service answers.
    """

    name: Final = "e2b"

    def __init__(self, settings: E2bSettings, *, tries: bool = True) -> None:
        self._settings, self._tries = settings, tries
        self._service = Service(settings)
        self._report: SandboxReport | None = None
        self._swept_at: float | None = None

    async def probe(self) -> SandboxReport:
        """Run an empty program, unless it must not. Raises as `Sandbox.probe` does."""
        if self._report is not None:
            return self._report
        version = self._service.check()
        notes = (
            f"template {self._settings.template}",
            f"programs, their files and their output go to {self._service.api_url}",
        )
        if not self._tries:
            await self._service.answers()
            untried = "the service answers; `rayloom sandbox check` runs a program there, too"
            return self._reported(version, (*notes, untried))
        await self.sweep()
        spec = RunSpec(program="python", source=b"", limits=SandboxLimits(wall_s=PROBE_S))
        result = await self._run(spec)
        if result.timed_out:
            raise Transient("SANDBOX_START_FAILED", f"an empty program did not end within {PROBE_S:g} s")
        if result.exit_code != 0:
            said = f"an empty program ended with {result.exit_code}: {result.stderr.strip()[-300:]}"
            raise Refused("SANDBOX_UNAVAILABLE", f"sandboxes of {self._settings.template} run no Python: {said}")
        self._report = self._reported(version, notes)
        return self._report

    def _reported(self, version: str, notes: tuple[str, ...]) -> SandboxReport:
        return SandboxReport(backend=self.name, version=version, isolated=True, memory_limit="sampled", notes=notes)

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program; see ``Sandbox.run``."""
        self._service.check()
        if spec.egress is not None or spec.packages is not None:
            raise Refused("SANDBOX_UNAVAILABLE", "folders of this host can't be seen in a sandbox elsewhere")
        room = spec.limits.disk_mb * MIB
        if sum(-(-len(data) // PAGE_BYTES) for data in spec.files.values()) * PAGE_BYTES > room:
            raise UserError("FILES_TOO_LARGE", f"/files: more than the workspace's {spec.limits.disk_mb} MiB")
        if self._swept_at is None or time.monotonic() - self._swept_at > SWEEP_S:
            await self.sweep()
        return await self._run(spec)

    async def sweep(self) -> int:
        """Remove the sandboxes whose owners are dead; how many there were."""
        self._swept_at = time.monotonic()
        return await self._service.sweep()

    async def _run(self, spec: RunSpec) -> RunResult:
        stages = Stages(self.name)
        box = await self._service.create(lifetime_s(spec), spec.hosts)
        run = RemoteRun(self._service, box, replace(spec, on_line=stages.first(spec.on_line)))
        try:
            await self._service.expect_walls(box, spec.hosts)
            stages.stood()
            result = await run.hold()
        finally:
            # At once, and waited for, whatever comes in between.
            ending = asyncio.gather(self._service.kill(box.sandbox_id), run.let_go())
            await asyncio.shield(ending)
        stages.tell()
        return result
