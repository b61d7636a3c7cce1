"""The host of the MCP servers' sessions as an actor: like the other singletons, but with processes of its own.

What it is made of is imported where it lives (see `singletons`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import ray
from pydantic import SecretStr

from rayloom.actors.callers import RayRegistry
from rayloom.actors.mcp_caller import MCP_NAME, RayMcp
from rayloom.actors.periodic import repeat
from rayloom.actors.settings import EngineSettings
from rayloom.actors.singletons import HEALTH_GROUP, POOL_SIZE, start_singleton
from rayloom.dag.answer import Answer, as_value
from rayloom.dag.mcp import CallLine, McpAnswer, McpCall, McpServer
from rayloom.dag.ports import Health
from rayloom.dag.values import JsonObject
from rayloom.db import faults
from rayloom.db.settings import DatabaseSettings
from rayloom.tools.settings import ToolSettings


class _McpHostActor:
    """``McpHost`` as an actor. ``health`` has a group, and so an event loop, of its own."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, engine: EngineSettings, database: DatabaseSettings, secret_key: SecretStr, tools: ToolSettings
    ) -> None:
        from rayloom.actors.mcp_host import McpHost
        from rayloom.db.cipher import Cipher
        from rayloom.db.engine import make_engine
        from rayloom.db.mcp_servers import McpServers

        faults.install(engine.faults, "mcp")
        rows = McpServers(
            make_engine(database.primary_dsn(), pool_size=POOL_SIZE, max_overflow=0, name=MCP_NAME), Cipher(secret_key)
        )
        self._host = McpHost(rows, RayRegistry(engine).look, tools)
        self._life = asyncio.create_task(repeat(MCP_NAME, self._host.step))

    async def register(self, server: McpServer) -> Answer[Sequence[str]]:
        return await as_value(self._host.register(server))

    async def show(self, name: str) -> Answer[JsonObject]:
        return await as_value(self._host.show(name))

    async def change(self, name: str, changes: JsonObject) -> Answer[JsonObject]:
        return await as_value(self._host.change(name, changes))

    async def remove(self, name: str) -> Answer[None]:
        return await as_value(self._host.remove(name))

    async def call(self, call: McpCall, structured: bool) -> Answer[McpAnswer]:
        return await as_value(self._host.call(call, structured))

    async def lines(self, server: str, call_id: str, after: int) -> Answer[Sequence[CallLine]]:
        return await as_value(self._host.lines(server, call_id, after))

    async def cancel(self, server: str, call_id: str) -> Answer[None]:
        return await as_value(self._host.cancel(server, call_id))

    @ray.method(concurrency_group=HEALTH_GROUP)
    async def health(self) -> Answer[Health]:
        return await as_value(self._host.health())


def start_mcp_host(
    engine: EngineSettings,
    database: DatabaseSettings,
    *,
    secret_key: SecretStr,
    tools: ToolSettings,
    node_labels: Mapping[str, str] | None = None,
) -> RayMcp:
    """Start the host of the MCP servers, unless it runs already."""
    start_singleton(
        _McpHostActor, engine, database, secret_key, tools, name=MCP_NAME, engine=engine, node_labels=node_labels
    )
    return RayMcp(engine)
