"""The registered tools as this replica knows them, kept fresh by asking the registry to answer when it changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Final

from rayloom.dag.breaker import BreakerView
from rayloom.dag.errors import Transient
from rayloom.dag.ports import RegisteredTool, RegistryPort, ToolSnapshot
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.dag.tool_view import ToolView
from rayloom.db.keys import Principal

log = logging.getLogger(__name__)

FIRST_ANSWER_S: Final = 5.0
LONG_POLL_S: Final = 60.0
RETRY_S: Final = 1.0
BY_HAND_WAIT_S: Final = 60.0
"""When to try a tool again whose breaker only a person closes: nobody knows when that will be."""


class OfferedTools:
    """The newest snapshot of the registry that reached this replica."""

    def __init__(self, registry: RegistryPort) -> None:
        self._registry = registry
        self._snapshot: ToolSnapshot | None = None
        self._views: Mapping[str, ToolView] = {}
        self._arrived, self._news = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow the registry."""
        self._task = asyncio.create_task(self._follow(), name="offered-tools")

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def all(self) -> Mapping[str, RegisteredTool]:
        """Every tool by name, switched off ones too. Raises Transient while the registry has never answered."""
        if self._snapshot is None:
            try:
                async with asyncio.timeout(FIRST_ANSWER_S):
                    await self._arrived.wait()
            except TimeoutError as error:
                raise Transient("REGISTRY_UNAVAILABLE", "the tool registry does not answer") from error
        assert self._snapshot is not None
        return self._snapshot.tools

    def breaker_of(self, name: str) -> BreakerView | None:
        """The breaker of a tool, as far as it is known; None while it is closed."""
        return None if self._snapshot is None else self._snapshot.breaker_of(name)

    def shut_for_s(self, name: str, *, fallback: str = "", scope: ToolScope = ALL_TOOLS) -> float | None:
        """In how many seconds to try a tool again that can't be called now, nor any in its place; None: it can.

        ``fallback``: the tool of the fallback that may be turned to; ``scope``: which tools may stand in.
        """
        view, tools = self.breaker_of(name), self._snapshot
        if tools is None or view is None:
            return None
        if tools.may_stand_in(fallback) or any(map(scope.takes, tools.stand_ins(name))):
            return None
        wait_s = view.wait_s(time.time())
        return None if wait_s == 0 else wait_s or BY_HAND_WAIT_S

    async def changed(self) -> None:
        """Wait for the next snapshot."""
        await self._news.wait()

    async def views(self) -> Mapping[str, ToolView]:
        """The same as a plan is judged by."""
        await self.all()
        return self._views

    async def refresh(self) -> int:
        """Look now, for whoever has just changed a tool and wants to see it; answers the version that was seen."""
        snapshot = await self._registry.snapshot()
        self._take(snapshot)
        return snapshot.version

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LONG_POLL_S):
                    version = self._snapshot.version if self._snapshot else None
                    answer = self._registry.snapshot() if version is None else self._registry.changed(version)
                    self._take(await answer)
            except Exception as error:  # noqa: BLE001 - whatever a remote call raises: the old snapshot stays good
                log.warning("registry.unreachable", extra={"error": type(error).__name__})
                await asyncio.sleep(RETRY_S)

    def _take(self, snapshot: ToolSnapshot) -> None:
        if self._snapshot is not None and snapshot.version < self._snapshot.version:
            return
        self._snapshot = snapshot
        self._views = snapshot.views()
        self._arrived.set()
        news, self._news = self._news, asyncio.Event()
        news.set()


def may_use(who: Principal, tool: RegisteredTool) -> bool:
    """Whether somebody may use a tool: their role and their key say so."""
    return who.scope.takes(tool.name) and who.scope.admits(tool.permission_level)
