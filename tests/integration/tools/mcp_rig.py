"""A session with an MCP server and nothing around it: what a test of sessions works with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from mcp_types import Tool

from rayloom.dag.mcp import CallLine, McpServer, ServerHealth
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.mcp.content import output_of
from rayloom.tools.mcp.opening import opener_of
from rayloom.tools.mcp.redaction import Redaction
from rayloom.tools.mcp.session import Session
from rayloom.tools.settings import ToolSettings

SETTINGS = ToolSettings(allow_addresses=("127.0.0.1/32",))
GENEROUS_S = 120.0


class Rig:
    """A session, and what it told."""

    def __init__(self, server: McpServer, *, probe_every_s: float = 15.0, settings: ToolSettings = SETTINGS) -> None:
        self.listed: list[Sequence[Tool]] = []
        self.health: list[ServerHealth] = []
        self.session = Session(
            server.name,
            opener_of(server, settings),
            Redaction(server),
            on_tools=self._take,
            on_health=self.health.append,
            probe_every_s=probe_every_s,
        )

    @property
    def tools(self) -> set[str]:
        """What the server listed last."""
        return {tool.name for tool in self.listed[-1]}

    async def call(
        self,
        tool: str,
        arguments: JsonObject | None = None,
        *,
        timeout_s: float = 30.0,
        lines: list[CallLine] | None = None,
    ) -> Json:
        """What a call gives."""
        id_ = uuid4().hex
        running = self.session.calls.begin(id_)
        try:
            result = await self.session.call(running, tool, arguments or {}, timeout_s=timeout_s, key="key")
        finally:
            self.session.calls.end(id_)
            if lines is not None:
                lines += running.lines
        return output_of(result, structured=True)

    async def _take(self, tools: Sequence[Tool]) -> None:
        self.listed.append(tools)


@asynccontextmanager
async def connected(server: McpServer, **options: Any) -> AsyncIterator[Rig]:
    """A session that is up, and closed afterwards."""
    rig = Rig(server, **options)
    rig.session.start()
    try:
        await rig.session.first()
        yield rig
    finally:
        await rig.session.stop()


async def until(look: Callable[[], Any], *, within_s: float = GENEROUS_S) -> None:
    """Wait until ``look`` finds something."""
    async with asyncio.timeout(within_s):
        while not look():  # noqa: ASYNC110 - what is looked at tells nobody
            await asyncio.sleep(0.02)


def children() -> set[int]:
    """The processes that are children of ours, dead ones too."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        # It may end meanwhile.
        with suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found |= {int(pid) for pid in file.read().split()}
    return found


def open_files() -> frozenset[tuple[str, str]]:
    """The descriptors that we have open, each with what it leads to.

    What was open before may be closed meanwhile, by whoever had left it to the garbage collection: what counts is what
    has come to it.
    """
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        # That of the look itself is closed by now.
        with suppress(OSError):
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return frozenset(found)


def memory_mb() -> float:
    """How much memory we hold."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
