"""A tool of an MCP server as an attempt calls it: by the host that has its session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

from uuid_utils.compat import uuid7

from rayloom.dag.errors import RayloomError
from rayloom.dag.mcp import ENDPOINT, CallLine, McpAnswer, McpCall, is_repeatable
from rayloom.dag.ports import RegisteredTool
from rayloom.dag.values import Json
from rayloom.tools.ports import LogPort
from rayloom.tools.tool import ToolContext, ToolResult, ToolSpec

_log = logging.getLogger(__name__)

FIRST_LINES_S: Final = 1.0
"""A call that is over sooner brings its lines with its answer."""
PAUSE_S: Final = 0.2
CANCEL_S: Final = 0.5
CALL_MAX_S: Final = 3_600.0


class McpCaller(Protocol):
    """The host of the MCP servers, as an attempt sees it; ``rayloom.actors.mcp_caller.RayMcp``."""

    async def call(self, call: McpCall, *, structured: bool, repeatable: bool, within_s: float) -> McpAnswer:
        """Make a call. ``structured``: its tool declares what it gives. ``repeatable``: a second one does no harm.

        Raises RayloomError: UserError where the call is at fault or the tool says that it failed; Transient where it
        may go better next time. Of one that is not ``repeatable`` nobody knows then whether it was done.
        """

    async def lines(self, server: str, call_id: str, after: int) -> Sequence[CallLine]:
        """What was said in a call after its first lines; waits a while for some."""

    async def cancel(self, server: str, call_id: str) -> None:
        """Stop a call, and tell the server."""


class McpTool:
    """Implements ``Tool``."""

    def __init__(self, registered: RegisteredTool, caller: McpCaller) -> None:
        self._server, _, self._tool = registered.endpoint.removeprefix(ENDPOINT).partition("/")
        self._repeatable = is_repeatable(registered.config)
        self._caller = caller
        self._spec = ToolSpec(
            name=registered.name,
            type="MCP",
            description=registered.description,
            version=registered.version,
            input_schema=registered.schema,
            output_schema=registered.output_schema,
            permission_level=registered.permission_level,
            resources=registered.resources,
            lane=registered.lane,
        )

    @property
    def spec(self) -> ToolSpec:
        """What is known of the tool without running it."""
        return self._spec

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        """Make the call. Cancelled, it tells the host, and so the server."""
        call = McpCall(
            id=uuid7().hex,
            server=self._server,
            tool=self._tool,
            arguments=input,
            idempotency_key=context.idempotency_key,
        )
        making = asyncio.create_task(
            self._caller.call(
                call,
                structured=self._spec.output_schema is not None,
                repeatable=self._repeatable,
                within_s=CALL_MAX_S,
            )
        )
        told = 0
        try:
            await asyncio.wait({making}, timeout=FIRST_LINES_S)
            while not making.done():
                told += await self._listen(making, call, told, context.log)
            answer = making.result()
        except asyncio.CancelledError:
            # What is not sent yet must not be sent behind the word that stops it.
            making.cancel()
            await self._stop(call)
            raise
        finally:
            making.cancel()
        _write(answer.lines[told:], context.log)
        return ToolResult(output=answer.output)

    async def _listen(self, making: asyncio.Task[McpAnswer], call: McpCall, told: int, log: LogPort) -> int:
        """Write down what was said since; answers how many lines. Over as soon as the call is."""
        asking = asyncio.create_task(self._caller.lines(call.server, call.id, told))
        try:
            await asyncio.wait({making, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return 0
            try:
                lines = asking.result()
            except RayloomError as error:
                _log.info("mcp.lines_lost: %s", error.message)
                lines = ()
        finally:
            asking.cancel()
        _write(lines, log)
        # Nothing at once means that the host does not know the call (yet, or any more).
        await asyncio.wait({making}, timeout=PAUSE_S)
        return len(lines)

    async def _stop(self, call: McpCall) -> None:
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._caller.cancel(call.server, call.id)
        except (RayloomError, TimeoutError) as error:
            # The host stops by itself what nobody asks for any more.
            _log.warning("mcp.not_cancelled: %s: %s", call.server, error)


def _write(lines: Sequence[CallLine], log: LogPort) -> None:
    for line in lines:
        log.line(line.message, level=line.level, fields=line.fields)
