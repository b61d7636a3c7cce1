"""The session with one MCP server: opened, watched, and opened again for as long as the server is registered.

One task owns the client: it enters it, waits, and leaves it, since the SDK's cancel scopes belong to the task that
entered them. Others call tools over it meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from mcp import Client
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Implementation, LoggingMessageNotificationParams, RequestParamsMeta, Tool

from rayloom.dag.errors import Bug, Transient
from rayloom.dag.mcp import CallLine, ServerHealth
from rayloom.dag.values import JsonObject
from rayloom.tools.mcp import protocol
from rayloom.tools.mcp.calls import Calls, Ears, Opener, RunningCall, any_of
from rayloom.tools.mcp.condition import Condition
from rayloom.tools.mcp.redaction import Redaction

_log = logging.getLogger(__name__)

CONNECT_S: Final = 60.0
"""A server that is not ready by then is given up for this time: `npx` may have to fetch it first."""
PROBE_EVERY_S: Final = 15.0
PROBE_S: Final = 10.0
PROBE_AGAIN_S: Final = 1.0
LISTEN_AGAIN_S: Final = 1.0
WAIT_S: Final = 10.0
"""A call waits so long for a session that is being opened."""
PAUSE_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
LASTING_S: Final = 30.0
"""A session that lasted so long is opened again at once."""
STOP_S: Final = 15.0
IDEMPOTENCY_KEY: Final = "rayloom/idempotencyKey"


class Session:
    """See the module. ``on_tools`` is told what the server lists, after each connect and each change of its list."""

    def __init__(
        self,
        name: str,
        opener: Opener,
        redaction: Redaction,
        *,
        on_tools: Callable[[Sequence[Tool]], Awaitable[None]],
        on_health: Callable[[ServerHealth], None],
        probe_every_s: float = PROBE_EVERY_S,
    ) -> None:
        self.name = name
        self.protocol = self.server_version = ""
        self.calls = Calls()
        self._opener, self.redaction = opener, redaction
        self._on_tools, self._probe_every_s = on_tools, probe_every_s
        self._condition = Condition(name, redaction, on_health)
        self._client: Client | None = None
        self._is_opening = True
        self._up, self._lost, self._over, self._stale = (asyncio.Event() for _ in range(4))
        self._failed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def health(self) -> ServerHealth:
        """How the server is."""
        return self._condition.health

    @property
    def last_error(self) -> str:
        """What came in the way last; empty when all is well."""
        return self._condition.last_error

    # -- its life ------------------------------------------------------------------------------------------------------

    def start(self, *, after: asyncio.Task[None] | None = None) -> None:
        """Begin to connect. ``after``: what has to be over first, such as the end of the session before."""
        self._task = asyncio.create_task(self._own(after), name=f"mcp-{self.name}")

    async def first(self) -> None:
        """Wait until it is connected for the first time. Raises what came in the way."""
        await any_of(self._up, self._failed)
        if not self._up.is_set():
            raise Transient("MCP_UNREACHABLE", self.last_error)

    async def stop(self) -> None:
        """Close the session, and end a server that is a child of ours. A connect in progress is given up at once."""
        self._over.set()
        self.calls.cancel_all()
        if self._task is not None:
            if self._is_opening:
                self._task.cancel()
            done, _ = await asyncio.wait({self._task}, timeout=STOP_S)
            if not done:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def _own(self, after: asyncio.Task[None] | None) -> None:
        loop, pause_s = asyncio.get_running_loop(), PAUSE_S
        if after is not None:
            await asyncio.wait({after})
        while not self._over.is_set():
            self._lost.clear()
            self._is_opening, self._condition.ended_for = True, ""
            up_at = math.inf
            try:
                async with asyncio.timeout(CONNECT_S) as limit, self._made() as client:
                    protocol.leave_outputs(client)
                    self._client = client
                    await self._opened(client)
                    limit.reschedule(None)
                    up_at = loop.time()
                    await self._watched(client)
            except Exception as error:  # noqa: BLE001 - whatever a server does: it is tried again
                self._note(error)
            finally:
                self._client = None
                self._up.clear()
            # One that is well for a moment and then ends, again and again, is no better than one that is not.
            if loop.time() - up_at >= LASTING_S:
                pause_s = PAUSE_S
            if not self._over.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s * (0.5 + random.random())):
                        await self._over.wait()
                pause_s = min(pause_s * 2, PAUSE_MAX_S)

    def _made(self) -> Client:
        return Client(
            self._opener(Ears(self._end, self._condition.heard)),
            mode="auto",
            log_level="info",
            logging_callback=self._on_log,
            message_handler=self._on_message,
            client_info=Implementation(name="rayloom", version="1"),
        )

    async def _opened(self, client: Client) -> None:
        self.protocol = client.protocol_version
        info = client.server_info
        self.server_version = info.version if info is not None else ""
        await self._on_tools(await protocol.listed(client))
        await protocol.want_log(client)
        self._condition.connected()
        self.calls.heard()
        self._is_opening = False
        self._up.set()
        _log.info("mcp.connected", extra={"server": self.name, "protocol": self.protocol})

    async def _watched(self, client: Client) -> None:
        """Until the session is lost or over: follow the list of tools, and look whether the server answers."""
        work = [asyncio.create_task(each) for each in (self._listen(client), self._follow(client))]
        try:
            await any_of(self._over, self._lost)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        if not self._over.is_set():
            self._note(ConnectionError("the connection to the server was lost"))

    async def _listen(self, client: Client) -> None:
        """Changes of the list as servers of 2026-07-28 tell them; those before send messages unasked."""
        while True:
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        self._stale.set()
            except (ListenNotSupportedError, MCPError):
                return
            except (SubscriptionLost, TimeoutError):
                # What changed meanwhile was not told.
                self._stale.set()
                await asyncio.sleep(LISTEN_AGAIN_S)

    async def _follow(self, client: Client) -> None:
        """Read the list again when it has changed, and now and then: that shows whether the server answers at all."""
        pause_s = self._probe_every_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stale.wait()
            self._stale.clear()
            try:
                async with asyncio.timeout(PROBE_S):
                    tools = await protocol.listed(client)
            except Exception as error:  # noqa: BLE001 - whatever it is, the server did not answer well
                if isinstance(error, TimeoutError) and self.calls.excuse_silence():
                    # It may be at work on a call and hear nothing meanwhile, for as long as a call may take.
                    continue
                self._note(error)
                # Soon, so that it is known soon whether that was the only one.
                pause_s = min(self._probe_every_s, PROBE_AGAIN_S)
                if self.health == "offline" or protocol.is_lost(error):
                    self._lost.set()
                continue
            pause_s = self._probe_every_s
            self._condition.well()
            self.calls.heard()
            try:
                await self._on_tools(tools)
            except Exception as error:  # noqa: BLE001 - whatever it is, the list is read again
                _log.warning("mcp.tools_not_kept", extra={"server": self.name, "error": self._condition.said(error)})

    # -- what the server says ------------------------------------------------------------------------------------------

    async def _on_message(self, message: Any) -> None:
        self.calls.heard()
        if getattr(message, "method", None) == "notifications/tools/list_changed":
            self._stale.set()

    async def _on_log(self, params: LoggingMessageNotificationParams) -> None:
        text = self.redaction.line(params.data)
        # It does not say which call it is about. With several, it could be told to somebody whom it is not for.
        if (call := self.calls.only()) is not None:
            call.say(CallLine(message=text, level=protocol.level_of(params.level)))
        else:
            _log.info("mcp.said", extra={"server": self.name, "level": params.level, "text": text})

    def _note(self, error: BaseException) -> None:
        self._condition.failed(error)
        self._failed.set()

    def _end(self, reason: str = "") -> None:
        """The server has ended, or is not heard any more. ``reason``: why we ended it."""
        self._condition.ended_for = reason
        self._lost.set()

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def call(
        self, call: RunningCall, tool: str, arguments: JsonObject, *, timeout_s: float, key: str
    ) -> CallToolResult:
        """Call a tool. Cancelled, it tells the server.

        Raises Transient (``MCP_OFFLINE``, ``MCP_CONNECTION_LOST``, ``MCP_TIMEOUT``, ``MCP_ERROR``), UserError
        (``MCP_CALL_INVALID``) and Bug (``TOOL_OUTPUT_INVALID``).
        """
        call.patience_s = timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                for is_second in (False, True):
                    client = await self._connected()
                    try:
                        return await self._called(client, call, tool, arguments, key)
                    except MCPError as error:
                        forgotten = protocol.is_forgotten(error)
                        if forgotten or protocol.is_lost(error):
                            self._let_go(client)
                        # A server that does not know the session any more has not looked at the call either.
                        if is_second or not forgotten:
                            raise protocol.failure(error, f"{self.name}: {self._condition.said(error)}") from error
                raise AssertionError("unreachable")
        except TimeoutError:
            raise Transient("MCP_TIMEOUT", f"{self.name}: {tool} took longer than {timeout_s:g} s") from None

    async def _called(
        self, client: Client, call: RunningCall, tool: str, arguments: JsonObject, key: str
    ) -> CallToolResult:
        async def told(progress: float, total: float | None, message: str | None) -> None:
            self.calls.heard()
            text = self.redaction.message(protocol.progress_text(progress, total, message))
            call.say(CallLine(message=text, fields={"progress": progress, "total": total}))

        meta = RequestParamsMeta(**{IDEMPOTENCY_KEY: key})  # type: ignore[typeddict-unknown-key]  # an open map

        try:
            result = await client.call_tool(tool, arguments, progress_callback=told, meta=meta)
            self.calls.heard()
            return result
        except (RuntimeError, ValueError) as error:
            # The SDK holds what came against the protocol.
            raise Bug("TOOL_OUTPUT_INVALID", self._condition.said(error)) from error

    async def _connected(self) -> Client:
        if self._client is None or not self._up.is_set():
            try:
                async with asyncio.timeout(WAIT_S):
                    await self._up.wait()
            except TimeoutError:
                said = f"the MCP server {self.name} is not there: {self.last_error or 'it has not answered yet'}"
                raise Transient("MCP_OFFLINE", said) from None
        assert self._client is not None
        return self._client

    def _let_go(self, client: Client) -> None:
        if self._client is client:
            self._client = None
            self._up.clear()
            self._lost.set()
