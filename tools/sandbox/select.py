"""Which sandbox a setting means."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Final

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox.bubblewrap import Bubblewrap
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec, Sandbox, SandboxReport
from rayloom.tools.sandbox.unsafe_local import UnsafeLocal
from rayloom.tools.settings import DockerSettings, E2bSettings, SandboxChoice

_log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 15.0
"""How often it is looked whether an engine that was lost is back."""


class Auto:
    """Containers where an engine answers and has an image for them, else bubblewrap; never unprotected.

    While an engine that answered before is lost, new runs go to bubblewrap, if that works here. With an image or a
    runtime of the user's own they wait for the engine: they would find other packages there, or weaker walls.
    """

    def __init__(self, docker: DockerSettings) -> None:
        self._docker = Docker(docker, builds=False)
        self._bubblewrap = Bubblewrap()
        self._chosen: Sandbox | None = None
        self._why_not = ""
        self._may_be_elsewhere = not (docker.image or docker.runtime)
        self._is_lost = False
        self._look_at = 0.0

    @property
    def name(self) -> str:
        """The name of the one that was chosen."""
        return self._chosen.name if self._chosen is not None else "auto"

    async def probe(self) -> SandboxReport:
        """Try one after the other; see ``Sandbox.probe``."""
        if self._chosen is not None:
            return await self._chosen.probe()
        try:
            report = await self._docker.probe()
        except (Refused, Transient) as error:
            # Bubblewrap is no weaker way: what only takes too long now need not be waited for.
            self._why_not = error.message
        else:
            self._chosen = self._docker
            return report
        try:
            report = await self._bubblewrap.probe()
        except Refused as error:
            raise Refused("SANDBOX_UNAVAILABLE", f"{error.message}; {self._why_not}") from error
        self._chosen = self._bubblewrap
        return report

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program; see ``Sandbox.run``."""
        await self.probe()
        assert self._chosen is not None
        if self._chosen is self._docker and self._may_be_elsewhere and await self._must_be_elsewhere():
            return await self._bubblewrap.run(spec)
        return await self._chosen.run(spec)

    async def _must_be_elsewhere(self) -> bool:
        return not await self._engine_answers() and await self._bubblewrap_works()

    async def _engine_answers(self) -> bool:
        if self._is_lost and time.monotonic() < self._look_at:
            return False
        is_lost = not await self._docker.answers()
        self._look_at = time.monotonic() + LOOK_AGAIN_S
        if is_lost != self._is_lost:
            self._is_lost = is_lost
            if is_lost:
                _log.warning("sandbox.engine_lost", extra={"instead": self._bubblewrap.name})
            else:
                _log.info("sandbox.engine_back")
        return not is_lost

    async def _bubblewrap_works(self) -> bool:
        try:
            await self._bubblewrap.probe()
        except (Refused, Transient):
            return False
        return True


_DOCKER: Final = DockerSettings()
_E2B: Final = E2bSettings()


@cache
def sandbox_for(
    choice: SandboxChoice,
    docker: DockerSettings = _DOCKER,
    e2b: E2bSettings = _E2B,
    *,
    builds: bool = True,
    tries: bool = True,
) -> Sandbox:
    """The sandbox of this process for a setting; ``probe`` says whether it works here.

    ``builds``: an image that is missing may be made. ``tries``: its probe may run a program where that costs money.
    ``auto`` never means running unprotected, and never means
    elsewhere. Raises Refused (``SANDBOX_UNAVAILABLE``).
    """
    match choice:
        case "auto":
            return Auto(docker)
        case "docker":
            return Docker(docker, builds=builds)
        case "bubblewrap":
            return Bubblewrap()
        case "unsafe-local":
            return UnsafeLocal()
        case "e2b":
            return E2b(e2b, tries=tries)
