"""A registry that lets through whom the test names, and remembers what it was told."""

from __future__ import annotations

from collections.abc import Sequence

from rayloom.dag.breaker import Call
from rayloom.dag.errors import Transient
from rayloom.dag.ports import BreakerWish, Health, RegisteredTool, ToolSnapshot


class ScriptedRegistry:
    """``RegistryPort``. ``lets``: how many more probes it lets through. ``away``: no answer.

    ``asked``: who asked and was answered, of so many ``tries``.
    """

    def __init__(self) -> None:
        self.lets = 0
        self.away = False
        self.tries = 0
        self.asked: list[tuple[str, str]] = []
        self.calls: list[Call] = []
        self.current = ToolSnapshot(version=0, tools={})

    async def report(self, calls: Sequence[Call]) -> None:
        """See `RegistryPort`."""
        self._answer()
        self.calls += calls

    async def probe(self, key: str, by: str) -> bool:
        """See `RegistryPort`."""
        self.tries += 1
        self._answer()
        self.asked.append((key, by))
        self.lets -= 1
        return self.lets >= 0

    async def snapshot(self) -> ToolSnapshot:
        """See `RegistryPort`."""
        return self.current

    async def changed(self, version: int) -> ToolSnapshot:
        """See `RegistryPort`."""
        return self.current

    async def register_native(self, name: str, endpoint: str) -> RegisteredTool:
        """See `RegistryPort`."""
        raise NotImplementedError

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> RegisteredTool:
        """See `RegistryPort`."""
        raise NotImplementedError

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        """See `RegistryPort`."""
        raise NotImplementedError

    async def remove(self, name: str) -> None:
        """See `RegistryPort`."""

    async def set_breaker(self, name: str, state: BreakerWish) -> RegisteredTool:
        """See `RegistryPort`."""
        raise NotImplementedError

    async def set_alternative(self, name: str, alternative: str | None) -> RegisteredTool:
        """See `RegistryPort`."""
        raise NotImplementedError

    async def health(self) -> Health:
        """See `RegistryPort`."""
        return {}

    def _answer(self) -> None:
        if self.away:
            raise Transient("ACTOR_UNAVAILABLE", "the registry does not answer")
