"""The tool registry: the one list of tools, as a snapshot with a version that only grows.

The rows in the database are the truth; this is their copy in memory, together with the knowledge of what the code
and the installed packages offer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

from rayloom.actors.breakers import Breakers
from rayloom.actors.described import check_alternative, check_name, describe
from rayloom.actors.resolve import BUILT_IN
from rayloom.dag.breaker import Call
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.ports import LONG_POLL_S, BreakerWish, Health, RegisteredTool, ToolSnapshot
from rayloom.dag.values import JsonObject
from rayloom.db.catalogue import CatalogueReading
from rayloom.tools import entry_points
from rayloom.tools.tool import Tool

log = logging.getLogger(__name__)

SWEEP_EVERY_S: Final = 30.0
"""Another registry on the same database (while a second cluster takes over) changes rows too."""
START_PATIENCE_S: Final = 10.0
TELL_AGAIN_S: Final = 0.5
_NOTHING: Final = ToolSnapshot(version=0, tools={})


class ToolRows(Protocol):
    """What the registry needs of the database; ``rayloom.db.catalogue.Catalogue``."""

    async def read(self) -> CatalogueReading:
        """All rows, at a version."""

    async def write_built_in(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring the rows of the built-in tools up to date."""

    async def renew(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring the rows of other tools up to date."""

    async def add(self, tool: RegisteredTool, contents: Sequence[str] = ()) -> None:
        """Add a tool that keeps these contents in the blob store. Raises UserError."""

    async def set_active(self, name: str, active: bool) -> None:
        """Switch a tool on or off. Raises UserError."""

    async def set_config(self, name: str, changes: JsonObject) -> None:
        """Change entries of a tool's config; null removes one. Raises UserError."""

    async def remove(self, name: str) -> None:
        """Remove a tool. Raises UserError."""


class ToolRegistry:
    """Implements ``RegistryPort``. Methods raise Transient while the database is away, not so ``report``.

    A breaker that changes makes a new version, like a tool that does.
    """

    def __init__(
        self,
        rows: ToolRows,
        built_in: Mapping[str, Tool],
        breakers: Breakers,
        *,
        load: Callable[[str], Tool] = entry_points.load,
        long_poll_s: float = LONG_POLL_S,
    ) -> None:
        self._rows, self._breakers = rows, breakers
        self._built_in = {name: describe(name, f"{BUILT_IN}{name}", tool) for name, tool in built_in.items()}
        self._load = load
        self._long_poll_s = long_poll_s
        self._snapshot = _NOTHING
        self._read_version = 0
        self._started = asyncio.Event()
        self._news = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    async def step(self) -> float:
        """Start, then look for changes that others made; answers in how many seconds to do so again."""
        if self._started.is_set():
            await self.refresh()
        else:
            await self.start()
        return SWEEP_EVERY_S

    async def start(self) -> None:
        """Write what this release and the installed packages offer, and read all rows."""
        await self._rows.write_built_in(tuple(self._built_in.values()))
        await self._breakers.load()
        await self._renew()
        await self.refresh()
        self._started.set()
        log.info("registry.started", extra={"version": self._snapshot.version, "tools": len(self._snapshot.tools)})

    async def refresh(self) -> None:
        """Read all rows; a new version if anything differs."""
        reading = await self._rows.read()
        if reading.version <= self._read_version:
            return  # A later reading was faster.
        self._read_version = reading.version
        # A built-in tool of another release may have its row, but not its code here.
        tools = {row.tool.name: row.tool for row in reading.rows if not row.built_in or row.tool.name in self._built_in}
        breakers = self._breakers.views()
        if tools != self._snapshot.tools or breakers != self._snapshot.breakers:
            self._snapshot = ToolSnapshot(version=reading.version, tools=tools, breakers=breakers)
            news, self._news = self._news, asyncio.Event()
            news.set()

    async def snapshot(self) -> ToolSnapshot:
        """All tools now."""
        await self._ready()
        return self._snapshot

    async def changed(self, version: int) -> ToolSnapshot:
        """Wait until the registry is newer than ``version``, or for some 20 s; answers all tools either way."""
        await self._ready()
        try:
            async with asyncio.timeout(self._long_poll_s):
                while self._snapshot.version <= version:
                    await self._news.wait()
        except TimeoutError:
            log.debug("registry.unchanged", extra={"version": version})
        return self._snapshot

    async def register_native(self, name: str, endpoint: str) -> RegisteredTool:
        """Switch on an installed entry point of the group ``rayloom.tools`` under a name of its own.

        Raises UserError: ``TOOL_EXISTS``, ``TOOL_UNKNOWN`` (no such entry point), ``TOOL_NAME_INVALID``,
        ``TOOL_INVALID``.
        """
        await self._ready()
        check_name(name)
        if name in self._snapshot.tools:
            raise UserError("TOOL_EXISTS", f"there is a tool {name!r} already")
        await self._rows.add(describe(name, endpoint, await self._loaded(endpoint)))
        return await self._current(name)

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> RegisteredTool:
        """Add a Skill whose contents are in the blob store under these names. Raises UserError (``TOOL_EXISTS``)."""
        await self._ready()
        await self._rows.add(tool, contents)
        return await self._current(tool.name)

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        """Switch a tool on or off. Raises UserError (``TOOL_UNKNOWN``)."""
        await self._ready()
        await self._rows.set_active(name, active)
        return await self._current(name)

    async def remove(self, name: str) -> None:
        """Remove a tool that is not built in. Raises UserError (``TOOL_UNKNOWN``, ``TOOL_BUILT_IN``)."""
        await self._ready()
        await self._rows.remove(name)
        await self.refresh()

    async def report(self, calls: Sequence[Call]) -> None:
        """How calls of tools went. Waits for nothing: whom it concerns is told as soon as the database answers."""
        if self._breakers.report(calls):
            self._tell_soon()

    async def probe(self, key: str, by: str) -> bool:
        """Let one subtask past a breaker whose time has come, to see whether the callee is back. False: wait."""
        # Before what an earlier life left open is known, every breaker would seem closed.
        await self._ready()
        may = self._breakers.probe(key, by)
        self._tell_soon()
        return may

    async def set_breaker(self, name: str, state: BreakerWish) -> RegisteredTool:
        """Close or open the breaker of a tool by hand, or switch it off. Raises UserError (``TOOL_UNKNOWN``)."""
        await self._ready()
        if state == "open":
            self._breakers.open((await self._current(name)).breaker_key)
        else:
            await self._rows.set_config(name, {"breaker": state == "closed"})
            self._breakers.close((await self._current(name)).breaker_key)
        await self._breakers.keep()
        return await self._current(name)

    async def set_alternative(self, name: str, alternative: str | None) -> RegisteredTool:
        """What is called in its place while its breaker is open. Raises UserError (``TOOL_UNKNOWN``).

        Also ``ALTERNATIVE_INVALID``: there is no such tool, it may do more than this one, or it leads back to it.
        """
        await self._ready()
        tool = await self._current(name)
        if alternative is not None:
            check_alternative(tool, alternative, self._snapshot.tools)
        await self._rows.set_config(name, {"alternative": alternative})
        return await self._current(name)

    async def health(self) -> Health:
        """Alive; ``ok`` once the rows were read. Touches no lock: it is asked from another event loop."""
        snapshot = self._snapshot
        return {
            "ok": self._started.is_set(),
            "version": snapshot.version,
            "tools": len(snapshot.tools),
            "breakers_open": len(snapshot.breakers),
        }

    def _tell_soon(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        """Write down what has opened and closed, and let everybody know, as often as it takes."""
        while self._breakers.unkept or self._breakers.views() != self._snapshot.breakers:
            try:
                await self._breakers.keep()
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must be told in the end
                log.warning("registry.breakers_untold", extra={"error": f"{type(error).__name__}: {error}"})
                await asyncio.sleep(TELL_AGAIN_S)

    async def _ready(self) -> None:
        if self._started.is_set():
            return
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                await self._started.wait()
        except TimeoutError as error:
            raise Transient(
                "REGISTRY_STARTING", "the tool registry waits for the database", retry_after_s=1.0
            ) from error

    async def _current(self, name: str) -> RegisteredTool:
        await self.refresh()
        tool = self._snapshot.tools.get(name)
        if tool is None:
            raise UserError("TOOL_UNKNOWN", f"the tool {name!r} was removed meanwhile")
        return tool

    async def _loaded(self, endpoint: str) -> Tool:
        try:
            # Importing a package may take seconds.
            tool = await asyncio.to_thread(self._load, endpoint)
        except UserError as error:
            code = "TOOL_UNKNOWN" if error.code == "ENDPOINT_UNKNOWN" else "TOOL_INVALID"
            raise UserError(code, error.message) from error
        if tool.spec.type != "NATIVE":
            raise UserError("TOOL_INVALID", f"{endpoint} says that it is of type {tool.spec.type}, not NATIVE")
        return tool

    async def _renew(self) -> None:
        """A package may have been upgraded since its tool was registered: its schema is what it says now."""
        newer: list[RegisteredTool] = []
        for row in (await self._rows.read()).rows:
            if row.built_in or row.tool.type != "NATIVE":
                continue
            try:
                tool = await self._loaded(row.tool.endpoint)
            except UserError as error:
                log.warning("registry.endpoint_missing", extra={"tool": row.tool.name, "reason": error.message})
                continue
            described = describe(row.tool.name, row.tool.endpoint, tool)
            config = {**row.tool.config, **described.config}
            if replace(described, config=config, is_active=row.tool.is_active) != row.tool:
                newer.append(described)
        for described in newer:
            try:
                await self._rows.renew([described])
            except UserError as error:
                log.warning("registry.not_renewed", extra={"tool": described.name, "reason": error.message})
