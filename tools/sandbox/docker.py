"""The container sandbox: one container of a Docker engine for each run, thrown away after it.

What holds: everything that the engine's containers hold (own namespaces of users' processes, network, mounts, IPC and
host name; the engine's system-call filter), with no network at all, a read-only root, size-capped memory file systems,
an unprivileged user, no capabilities and none to be had, and kernel limits on memory, processes and CPU. What doesn't:
it is the host's kernel, unless the engine has a runtime such as runsc. Nothing of the host is mounted.

A container is started before it is needed and waits, its interpreter too. Each serves one run.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox import container, image
from rayloom.tools.sandbox.container import Shape
from rayloom.tools.sandbox.conversation import Conversation
from rayloom.tools.sandbox.engine import Engine, EngineError
from rayloom.tools.sandbox.measures import Stages
from rayloom.tools.sandbox.pool import Pool
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec, SandboxReport
from rayloom.tools.settings import DockerSettings, SandboxLimits

PING_S: Final = 2.0
SWEEP_S: Final = 300.0
LEAST_MEMORY_MB: Final = 6
"""Engines make no container with less."""


class Docker:
    """Runs programs in containers. One instance may serve many runs at once, in any event loop."""

    name: Final = "docker"

    def __init__(self, settings: DockerSettings, *, builds: bool = True) -> None:
        self._settings = settings
        self._image = settings.image or image.NAME
        self._builds = builds and not settings.image
        self._engine = Engine(settings.address)
        self._pool = Pool(self._engine, most=settings.warm)
        self._report: SandboxReport | None = None
        self._swept_at: float | None = None

    async def probe(self) -> SandboxReport:
        """Run an empty program. Raises as `Sandbox.probe` does.

        The default image is made where it is missing, unless this one is to take only what is there.
        """
        if self._report is not None:
            return self._report
        about, notes = await self._look()
        await self.sweep()
        spec = RunSpec(program="python", source=b"", limits=SandboxLimits(wall_s=container.START_S))
        result = await self._run(spec, refills=False)
        if result.timed_out:
            said = f"an empty program did not end within {container.START_S:g} s"
            raise Transient("SANDBOX_START_FAILED", said)
        if result.exit_code != 0:
            said = f"an empty program ended with {result.exit_code}: {result.stderr.strip()[-300:]}"
            raise Refused("SANDBOX_UNAVAILABLE", f"containers of {self._image} run no Python: {said}")
        self._report = SandboxReport(
            backend=self.name,
            version=str(about.get("ServerVersion", "?")),
            isolated=True,
            memory_limit="cgroup",
            notes=(f"image {self._image}", *notes),
        )
        return self._report

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program; see ``Sandbox.run``."""
        await self.probe()
        if self._swept_at is None or time.monotonic() - self._swept_at > SWEEP_S:
            await self.sweep()
        return await self._run(spec)

    async def answers(self) -> bool:
        """Whether the engine is there, and well enough to say so."""
        try:
            await self._engine.ask("GET", "/_ping", within_s=PING_S)
        except (EngineError, Refused, Transient):
            return False
        return True

    async def sweep(self) -> int:
        """Remove the containers whose owners are dead; how many there were."""
        self._swept_at = time.monotonic()
        return await container.sweep(self._engine)

    def waiting(self) -> set[str]:
        """The ids of the containers that wait for a run."""
        return self._pool.ids()

    def is_settled(self) -> bool:
        """Whether no container is being made for a later run."""
        return self._pool.is_settled()

    def close(self) -> None:
        """Let go of the containers that wait; they end by themselves."""
        self._pool.close()

    async def _run(self, spec: RunSpec, *, refills: bool = True) -> RunResult:
        stages = Stages(self.name)
        if spec.limits.memory_mb < LEAST_MEMORY_MB:
            raise container.too_little_memory(spec.limits.memory_mb)
        shape = Shape.of(self._image, self._settings.runtime, spec.limits, spec.egress, spec.packages)
        taken = self._pool.take(shape)
        warm = taken is not None
        if taken is None:
            taken = await container.start(self._engine, shape)
        stages.stood(warm=warm)
        done = False
        try:
            if refills and spec.egress is None:
                self._pool.refill(shape)
            conversation = Conversation(taken, replace(spec, on_line=stages.first(spec.on_line)))
            result = await conversation.hold()
            done = conversation.ended
        finally:
            # What has said its last word ends, and is removed by the engine. Anything else is killed, and waited for,
            # whatever comes in between.
            if done:
                taken.stream.close()
            else:
                await asyncio.shield(asyncio.ensure_future(taken.discard()))
        stages.tell()
        return result

    async def _look(self) -> tuple[dict[str, Any], list[str]]:
        """What the engine says of itself, and what it can't do; raises Refused when that is too little."""
        about: dict[str, Any] = await self._ask("/info")
        if about.get("OSType") != "linux":
            raise Refused("SANDBOX_UNAVAILABLE", f"the container engine runs {about.get('OSType')} containers")
        for limit, what in (("MemoryLimit", "memory"), ("PidsLimit", "processes")):
            if about.get(limit) is False:
                raise Refused("SANDBOX_UNAVAILABLE", f"the container engine can't limit the {what} of a container here")
        runtime = self._settings.runtime
        if runtime and runtime not in (about.get("Runtimes") or {}):
            raise Refused("SANDBOX_UNAVAILABLE", f"the container engine has no runtime {runtime!r}")
        notes = [f"runtime {runtime}"] if runtime else []
        if about.get("CpuCfsQuota") is False:
            notes.append("CPU time can't be limited")
        if not any("seccomp" in str(option) for option in about.get("SecurityOptions") or ()):
            notes.append("the engine has no system-call filter")
        if not await self._has_image():
            if not self._builds:
                advice = "`rayloom sandbox build` makes one" if not self._settings.image else "pull it, or build it"
                raise Refused("SANDBOX_UNAVAILABLE", f"the container engine has no image {self._image}: {advice}")
            await image.build(self._engine, self._image)
        return about, notes

    async def _has_image(self) -> bool:
        try:
            await self._engine.ask("GET", f"/images/{self._image}/json", within_s=PING_S)
        except EngineError as error:
            if error.status == 404:
                return False
            raise Refused("SANDBOX_UNAVAILABLE", f"the container engine refuses: {error.message}") from error
        return True

    async def _ask(self, path: str) -> dict[str, Any]:
        found: Any = None
        with suppress(EngineError):
            found = await self._engine.ask("GET", path, within_s=PING_S)
        if not isinstance(found, dict):
            raise Refused("SANDBOX_UNAVAILABLE", f"what listens at {self._engine.address} is no container engine")
        return found
