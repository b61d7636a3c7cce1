"""The rows of the MCP servers and of their tools. What may be a secret is encrypted in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import UserError
from rayloom.dag.mcp import McpServer, ServerHealth
from rayloom.dag.ports import RegisteredTool
from rayloom.db.catalogue import COLUMNS, GIVEN, given, invalid_is_told, turn
from rayloom.db.cipher import Cipher, Unreadable
from rayloom.db.engine import dump

SECRETS: Final = ("env", "headers", "auth")
_APART: Final = (*SECRETS, "name", "transport", "is_active")

_ADD_SERVER: Final = """
    INSERT INTO mcp_servers (name, transport, spec, secrets, is_active, health)
    SELECT $1, $2, $3::jsonb, $4, $5, 'ok' WHERE NOT EXISTS (SELECT FROM tools WHERE name = $1)
    ON CONFLICT (name) DO NOTHING RETURNING name
"""
# Another tool may have one of these names: then theirs stays, and the row is not returned.
_PUT_TOOLS: Final = f"""
    INSERT INTO tools (id, {COLUMNS}, server, is_active)
    SELECT id, {COLUMNS}, $2, endpoint <> ALL ($3::text[]) FROM {GIVEN} ORDER BY name
    ON CONFLICT (name) DO UPDATE SET
        description = excluded.description, version = excluded.version, schema = excluded.schema,
        output_schema = excluded.output_schema, endpoint = excluded.endpoint,
        config = tools.config || excluded.config, resources = excluded.resources, lane = excluded.lane,
        permission_level = excluded.permission_level, is_active = excluded.is_active, updated_at = now()
    WHERE tools.server = $2
    RETURNING name
"""
# A tool is known by its endpoint: its name here may depend on which others there are.
_OFF: Final = """
    SELECT array(
        SELECT endpoint FROM tools WHERE server = s.name AND NOT is_active
        UNION SELECT unnest(s.off)
    ) FROM mcp_servers s WHERE s.name = $1
"""
_KEEP_OFF: Final = """
    UPDATE mcp_servers SET off = array(
        SELECT endpoint FROM unnest($2::text[]) AS endpoint
        WHERE endpoint NOT IN (SELECT t.endpoint FROM tools t WHERE t.server = $1) ORDER BY endpoint
    ) WHERE name = $1
"""


class McpServers:
    """The table ``mcp_servers``, and the rows of ``tools`` that belong to it.

    Every method raises Transient when the database is away.
    """

    def __init__(self, engine: AsyncEngine, cipher: Cipher) -> None:
        self._engine, self._cipher = engine, cipher

    async def read(self) -> dict[str, McpServer | None]:
        """Every server by name; None for one whose secrets were encrypted with another key."""
        async with turn(self._engine) as connection:
            rows = await connection.fetch("SELECT name, transport, spec, secrets, is_active FROM mcp_servers")
        return {row["name"]: self._server(row) for row in rows}

    async def add(self, server: McpServer, tools: Sequence[RegisteredTool]) -> None:
        """Add a server with its tools. Raises UserError (``TOOL_EXISTS``, ``TOOL_INVALID``)."""
        with invalid_is_told():
            async with turn(self._engine) as connection:
                values = (server.name, server.transport, _spec(server), self._secrets(server), server.is_active)
                if await connection.fetchval(_ADD_SERVER, *values) is None:
                    raise UserError("TOOL_EXISTS", f"there is a tool or a server {server.name!r} already")
                put = await _put(connection, server.name, tools, ())
                for tool in tools:
                    if tool.name not in put:
                        raise UserError("TOOL_EXISTS", f"there is a tool {tool.name!r} already")

    async def keep(self, server: McpServer) -> None:
        """Write down what was changed of a server. Raises UserError (``TOOL_UNKNOWN``)."""
        async with turn(self._engine) as connection:
            changed = await connection.fetchval(
                "UPDATE mcp_servers SET spec = $2::jsonb, secrets = $3, is_active = $4, updated_at = now() "
                "WHERE name = $1 RETURNING true",
                *(server.name, _spec(server), self._secrets(server), server.is_active),
            )
        if changed is None:
            raise unknown(server.name)

    async def set_tools(self, name: str, tools: Sequence[RegisteredTool]) -> frozenset[str]:
        """Make these the tools of a server; answers the names of those that it has now.

        What an admin switched off stays off, also when it was gone from the list meanwhile. A name that somebody else's
        tool has stays theirs.
        """
        with invalid_is_told():
            async with turn(self._engine) as connection:
                off = await connection.fetchval(_OFF, name)
                if off is None:
                    raise unknown(name)
                put = await _put(connection, name, tools, off)
                await connection.execute("DELETE FROM tools WHERE server = $1 AND name <> ALL ($2)", name, list(put))
                await connection.execute(_KEEP_OFF, name, off)
        return put

    async def set_health(self, health: Mapping[str, ServerHealth]) -> None:
        """Write down how servers are."""
        async with turn(self._engine) as connection:
            await connection.executemany(
                "UPDATE mcp_servers SET health = $2 WHERE name = $1 AND health <> $2", list(health.items())
            )

    async def remove(self, name: str) -> None:
        """Remove a server with all its tools. Raises UserError (``TOOL_UNKNOWN``)."""
        async with turn(self._engine) as connection:
            if await connection.fetchval("DELETE FROM mcp_servers WHERE name = $1 RETURNING true", name) is None:
                raise unknown(name)

    def _secrets(self, server: McpServer) -> str:
        return self._cipher.encrypt(orjson.dumps({name: getattr(server, name) for name in SECRETS}).decode())

    def _server(self, row: asyncpg.Record) -> McpServer | None:
        try:
            secrets = orjson.loads(self._cipher.decrypt(row["secrets"]))
        except Unreadable:
            return None
        spec = {**row["spec"], "command": tuple(row["spec"]["command"]), "readable": tuple(row["spec"]["readable"])}
        return McpServer(name=row["name"], transport=row["transport"], is_active=row["is_active"], **spec, **secrets)


def unknown(name: str) -> UserError:
    """The error for the name of a server that there is not."""
    return UserError("TOOL_UNKNOWN", f"there is no MCP server {name!r}")


async def _put(
    connection: asyncpg.Connection[asyncpg.Record], server: str, tools: Sequence[RegisteredTool], off: Sequence[str]
) -> frozenset[str]:
    return frozenset(row["name"] for row in await connection.fetch(_PUT_TOOLS, given(tools), server, off))


def _spec(server: McpServer) -> str:
    return dump({name: value for name, value in asdict(server).items() if name not in _APART})
