"""The host of the sessions of MCP servers: one of each server, whoever calls its tools.

The rows in the database are the truth; this opens a session for each of them, keeps the rows of their tools as the
servers list them, and makes the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from mcp_types import Tool

from rayloom.actors.mcp_leaving import Leaving
from rayloom.actors.mcp_telling import Telling
from rayloom.actors.mcp_view import changed, shown
from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.dag.mcp import CallLine, McpAnswer, McpCall, McpServer, ServerHealth
from rayloom.dag.ports import Health, RegisteredTool
from rayloom.dag.values import JsonObject
from rayloom.tools.mcp.content import check_structured, output_of
from rayloom.tools.mcp.naming import SERVER_NAME, described
from rayloom.tools.mcp.opening import check, opener_of
from rayloom.tools.mcp.redaction import Redaction
from rayloom.tools.mcp.session import CONNECT_S, Session
from rayloom.tools.settings import ToolSettings

_log = logging.getLogger(__name__)

STEP_S: Final = 5.0
START_PATIENCE_S: Final = 10.0
CHECK_S: Final = 5.0
LINES_WITHIN_S: Final = 5.0
"""A question for lines of a call is answered after so long, lines or not."""
FORSAKEN_S: Final = 45.0
"""A call whose caller has not asked for so long is stopped."""


class ServerRows(Protocol):
    """What the host needs of the database; ``rayloom.db.mcp_servers.McpServers``."""

    async def read(self) -> Mapping[str, McpServer | None]:
        """Every server by name; None for one whose secrets can't be read."""

    async def add(self, server: McpServer, tools: Sequence[RegisteredTool]) -> None:
        """Add a server with its tools. Raises UserError."""

    async def keep(self, server: McpServer) -> None:
        """Write down what was changed. Raises UserError."""

    async def set_tools(self, name: str, tools: Sequence[RegisteredTool]) -> frozenset[str]:
        """Make these the tools of a server; answers the names of those that it has now. Raises UserError."""

    async def set_health(self, health: Mapping[str, ServerHealth]) -> None:
        """Write down how servers are."""

    async def remove(self, name: str) -> None:
        """Remove a server with all its tools. Raises UserError."""


class McpHost:
    """Implements ``McpPort``, and what workers ask. ``look``: makes the registry read its rows anew."""

    def __init__(self, rows: ServerRows, look: Callable[[], Awaitable[None]], settings: ToolSettings) -> None:
        self._rows, self._telling, self._settings = rows, Telling(look), settings
        self._servers: dict[str, McpServer] = {}
        self._sessions: dict[str, Session] = {}
        self._tools: dict[str, tuple[RegisteredTool, ...]] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._coming: dict[str, Sequence[Tool]] = {}
        self._health: dict[str, ServerHealth] = {}
        self._leaving = Leaving()
        self._unreadable: set[str] = set()
        self._started, self._turn = asyncio.Event(), asyncio.Lock()

    # -- its life ------------------------------------------------------------------------------------------------------

    async def step(self) -> float:
        """Open the sessions of new rows, close those of rows that are gone; answers when to look again."""
        async with self._turn:
            rows = await self._rows.read()
            for name, server in rows.items():
                if server is None and name not in self._unreadable:
                    self._unreadable.add(name)
                    _log.error("mcp.secrets_unreadable: %s was registered with another RAYLOOM_SECRET_KEY", name)
                elif server is not None and server != self._servers.get(name):
                    self._replace(server)
            for name in [name for name in self._servers if name not in rows]:
                self._drop(name)
        self._started.set()
        await self._tell_health()
        await self._telling.again()
        since = asyncio.get_running_loop().time() - FORSAKEN_S
        for session in self._sessions.values():
            for call in session.calls.forsaken(since):
                call.cancel()
        return STEP_S

    async def close(self) -> None:
        """Close every session."""
        for name in [*self._sessions]:
            self._drop(name)
        await self._leaving.all_over()

    # -- what the API asks ---------------------------------------------------------------------------------------------

    async def register(self, server: McpServer) -> Sequence[str]:
        """Connect to a server and add its tools; answers their names. Raises UserError; see ``McpPort``."""
        await self._ready()
        name = server.name
        if not SERVER_NAME.fullmatch(name) or name == "skill":
            raise UserError("TOOL_NAME_INVALID", "a server's name has up to 64 letters, digits, '_' and '-', no dots")
        await self._checked(server)
        if name in self._servers or name in self._coming:
            raise UserError("TOOL_EXISTS", f"there is a server {name!r} already")
        self._coming[name] = ()
        session = self._made(server)
        try:
            session.start(after=self._leaving.get(name))
            await self._arrived(session)
            found = described(server, self._coming[name], session.server_version)
            if found.faults:
                raise UserError("MCP_SCHEMA_INVALID", "; ".join(f"{f.pointer}: {f.message}" for f in found.faults[:5]))
            async with self._turn:
                await self._rows.add(server, found.tools)
                self._servers[name], self._sessions[name], self._tools[name] = server, session, found.tools
                self._names[name] = frozenset(tool.name for tool in found.tools)
        except BaseException:
            await session.stop()
            raise
        finally:
            del self._coming[name]
        await self._telling.tell()
        return sorted(self._names[name])

    async def show(self, name: str) -> JsonObject:
        """A server without its secrets. Raises UserError (``TOOL_UNKNOWN``)."""
        await self._ready()
        return shown(self._known(name), self._sessions.get(name), sorted(self._names.get(name, ())))

    async def change(self, name: str, changes: JsonObject) -> JsonObject:
        """Change a server. Raises UserError; see ``McpPort``."""
        await self._ready()
        async with self._turn:
            server = changed(self._known(name), changes)
            await self._checked(server)
            await self._rows.keep(server)
            self._replace(server)
        await self._leaving.over(name)
        await self._telling.tell()
        return await self.show(name)

    async def remove(self, name: str) -> None:
        """Remove a server and all its tools. Raises UserError (``TOOL_UNKNOWN``)."""
        await self._ready()
        async with self._turn:
            await self._rows.remove(name)
            self._drop(name)
        await self._leaving.over(name)
        await self._telling.tell()

    async def health(self) -> Health:
        """Alive, with counts of what it holds. Touches no lock: it is asked from another event loop."""
        sessions = list(self._sessions.values())
        return {
            "ok": self._started.is_set(),
            "servers": len(sessions),
            "offline": sum(session.health == "offline" for session in sessions),
            "calls": sum(len(session.calls) for session in sessions),
        }

    # -- what workers ask ----------------------------------------------------------------------------------------------

    async def call(self, call: McpCall, structured: bool) -> McpAnswer:
        """Make a call. ``structured``: its tool declares what it gives.

        Whether it fits the output schema is left to who asks: this loop is all servers'. Raises what ``Session.call``
        raises, and UserError (``MCP_TOOL_FAILED``, ``TOOL_UNKNOWN``), Refused (``TOOL_INACTIVE``).
        """
        await self._ready()
        server = self._known(call.server)
        session = self._sessions.get(call.server)
        if session is None:
            raise Refused("TOOL_INACTIVE", f"the MCP server {call.server} is switched off")
        running = session.calls.begin(call.id)
        made = session.call(running, call.tool, call.arguments, timeout_s=server.timeout_s, key=call.idempotency_key)
        running.task = asyncio.create_task(made)
        try:
            await asyncio.wait({running.task})
            if running.task.cancelled():
                raise Transient("MCP_CONNECTION_LOST", f"{call.server}: the call was stopped")
            result = running.task.result()
            if structured:
                check_structured(result, call.tool)
            output = output_of(result, structured=structured)
        except UserError as error:
            raise UserError(error.code, session.redaction.message(error.message)) from None
        finally:
            running.task.cancel()
            session.calls.end(call.id)
        return McpAnswer(output=session.redaction.output(output), lines=tuple(running.lines))

    async def lines(self, server: str, call_id: str, after: int) -> Sequence[CallLine]:
        """What was said in a call after its first ``after`` lines; waits a while for some."""
        session = self._sessions.get(server)
        call = None if session is None else session.calls.get(call_id)
        return () if call is None else await call.after(after, LINES_WITHIN_S)

    async def cancel(self, server: str, call_id: str) -> None:
        """Stop a call, and tell the server."""
        session = self._sessions.get(server)
        call = None if session is None else session.calls.get(call_id)
        if call is not None:
            call.cancel()

    # -- within --------------------------------------------------------------------------------------------------------

    def _known(self, name: str) -> McpServer:
        server = self._servers.get(name)
        if server is None:
            raise UserError("TOOL_UNKNOWN", f"there is no MCP server {name!r}")
        return server

    async def _checked(self, server: McpServer) -> None:
        try:
            async with asyncio.timeout(CHECK_S):
                # One that is switched off need not be able to run.
                await asyncio.to_thread(check, server, folders=server.is_active)
        except TimeoutError:
            raise UserError("MCP_INVALID", f"readable: the folders were not found within {CHECK_S:g} s") from None

    def _made(self, server: McpServer) -> Session:
        return Session(
            server.name,
            opener_of(server, self._settings),
            Redaction(server),
            on_tools=partial(self._take, server.name),
            on_health=partial(self._health.__setitem__, server.name),
        )

    async def _arrived(self, session: Session) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await session.first()
        except (RayloomError, TimeoutError) as error:
            said = error.message if isinstance(error, RayloomError) else f"it was not ready within {CONNECT_S:g} s"
            raise UserError("MCP_UNREACHABLE", f"the MCP server can't be reached: {said}") from None

    async def _take(self, name: str, tools: Sequence[Tool]) -> None:
        """What a server lists now."""
        if name in self._coming:
            self._coming[name] = tools
            return
        server, session = self._servers.get(name), self._sessions.get(name)
        if server is None or session is None:
            return
        found = described(server, tools, session.server_version)
        for fault in (*found.faults, *found.repeats):
            _log.warning("mcp.tool_left_out", extra={"server": name, "where": fault.pointer, "reason": fault.message})
        if found.tools != self._tools.get(name):
            self._names[name] = await self._rows.set_tools(name, found.tools)
            self._tools[name] = found.tools
            await self._telling.tell()

    def _replace(self, server: McpServer) -> None:
        self._drop(server.name)
        self._servers[server.name] = server
        if server.is_active:
            session = self._sessions[server.name] = self._made(server)
            session.start(after=self._leaving.get(server.name))

    def _drop(self, name: str) -> None:
        """Forget a server. Nobody waits for its session to end but the next one of that name."""
        self._servers.pop(name, None)
        self._health.pop(name, None)
        self._tools.pop(name, None)
        session = self._sessions.pop(name, None)
        if session is not None:
            self._leaving.begin(name, session)

    async def _tell_health(self) -> None:
        untold = {name: health for name, health in self._health.items() if name in self._servers}
        if untold:
            await self._rows.set_health(untold)
            self._telling.changed()
            for name, health in untold.items():
                if self._health.get(name) == health:
                    del self._health[name]

    async def _ready(self) -> None:
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                await self._started.wait()
        except TimeoutError as error:
            raise Transient("MCP_STARTING", "the host of the MCP servers waits for the database") from error
