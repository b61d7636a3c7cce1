"""Which sandbox a setting means."""

from __future__ import annotations

from functools import cache
from typing import Final

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox.bubblewrap import Bubblewrap
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec, Sandbox, SandboxReport
from rayloom.tools.sandbox.unsafe_local import UnsafeLocal
from rayloom.tools.settings import DockerSettings, E2bSettings, SandboxChoice


class Auto:
    """Containers where an engine answers and has an image for them, else bubblewrap; never unprotected."""

    def __init__(self, docker: DockerSettings) -> None:
        self._docker = Docker(docker, builds=False)
        self._bubblewrap = Bubblewrap()
        self._chosen: Sandbox | None = None
        self._why_not = ""

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
        return await self._chosen.run(spec)


_DOCKER: Final = DockerSettings()
_E2B: Final = E2bSettings()


@cache
def sandbox_for(choice: SandboxChoice, docker: DockerSettings = _DOCKER, e2b: E2bSettings = _E2B) -> Sandbox:
    """The sandbox of this process for a setting; ``probe`` says whether it works here.

    ``auto`` never means running unprotected, and never means elsewhere.
    """
    match choice:
        case "auto":
            return Auto(docker)
        case "docker":
            return Docker(docker)
        case "bubblewrap":
            return Bubblewrap()
        case "unsafe-local":
            return UnsafeLocal()
        case "e2b":
            return E2b(e2b)
