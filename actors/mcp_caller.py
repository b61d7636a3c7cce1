"""The callers' side of the host of the MCP servers, by its name: of the API and of workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rayloom.actors.named import NamedActor
from rayloom.actors.settings import EngineSettings
from rayloom.dag.mcp import CallLine, McpAnswer, McpCall, McpServer
from rayloom.dag.ports import Health
from rayloom.dag.values import JsonObject

MCP_NAME: Final = "rayloom-mcp-v1"
REGISTER_TIMEOUT_S: Final = 90.0
HEALTH_TIMEOUT_S: Final = 3.0
CALL_MARGIN_S: Final = 60.0
"""The host itself ends a call that takes too long: this long after that it must be gone, or unreachable."""


class RayMcp:
    """``McpPort``, and ``McpCaller``. Belongs to one event loop.

    Every method may raise Transient (``ACTOR_UNAVAILABLE``).
    """

    def __init__(self, engine: EngineSettings) -> None:
        self._actor = NamedActor(MCP_NAME, engine.namespace)

    async def register(self, server: McpServer) -> Sequence[str]:
        """Connect to a server and add its tools; answers their names. Raises UserError; see ``McpPort``."""
        names: Sequence[str] = await self._actor.call(
            "register", server, idempotent=False, timeout_s=REGISTER_TIMEOUT_S
        )
        return names

    async def show(self, name: str) -> JsonObject:
        """A server without its secrets. Raises UserError (``TOOL_UNKNOWN``)."""
        view: JsonObject = await self._actor.call("show", name, idempotent=True)
        return view

    async def change(self, name: str, changes: JsonObject) -> JsonObject:
        """Change a server. Raises UserError; see ``McpPort``."""
        view: JsonObject = await self._actor.call("change", name, changes, idempotent=True)
        return view

    async def remove(self, name: str) -> None:
        """Remove a server and all its tools. Raises UserError (``TOOL_UNKNOWN``)."""
        await self._actor.call("remove", name, idempotent=False)

    async def health(self) -> Health:
        """Alive, with counts of what it holds. Does not wait for a restart."""
        health: Health = await self._actor.call("health", idempotent=True, timeout_s=HEALTH_TIMEOUT_S, retry_for_s=0)
        return health

    async def call(self, call: McpCall, *, structured: bool, repeatable: bool, within_s: float) -> McpAnswer:
        """Make a call; see ``McpCaller``."""
        answer: McpAnswer = await self._actor.call(
            "call", call, structured, idempotent=repeatable, timeout_s=within_s + CALL_MARGIN_S
        )
        return answer

    async def lines(self, server: str, call_id: str, after: int) -> Sequence[CallLine]:
        """What was said in a call after its first lines; waits a while for some."""
        lines: Sequence[CallLine] = await self._actor.call("lines", server, call_id, after, idempotent=True)
        return lines

    async def cancel(self, server: str, call_id: str) -> None:
        """Stop a call, and tell the server. Does not wait for a restart: then it is stopped already."""
        await self._actor.call("cancel", server, call_id, idempotent=True, retry_for_s=0)
