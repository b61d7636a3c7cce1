"""Sessions with MCP servers that end: a server may take its time for that, and nobody else should wait for it."""

from __future__ import annotations

import asyncio
import logging

from rayloom.tools.mcp.session import Session

_log = logging.getLogger(__name__)


class Leaving:
    """The sessions that end, by the names of their servers."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str, session: Session) -> None:
        """End a session. Does not wait for it."""
        leaving = asyncio.create_task(self._end(name, session, self._tasks.get(name)), name=f"mcp-leaving-{name}")
        self._tasks[name] = leaving

    def get(self, name: str) -> asyncio.Task[None] | None:
        """What is over when every session with a server has ended; None when that is so already."""
        return self._tasks.get(name)

    async def over(self, name: str) -> None:
        """Wait until every session with a server has ended."""
        if (leaving := self._tasks.get(name)) is not None:
            await asyncio.wait({leaving})

    async def all_over(self) -> None:
        """Wait until all of them have ended."""
        if self._tasks:
            await asyncio.wait(set(self._tasks.values()))

    async def _end(self, name: str, session: Session, before: asyncio.Task[None] | None) -> None:
        try:
            await session.stop()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next session must not wait for ever
            _log.error("mcp.not_stopped: %s: %s", name, error)
        finally:
            if before is not None:
                await asyncio.wait({before})
            if self._tasks.get(name) is asyncio.current_task():
                del self._tasks[name]
