"""The rows of the tools: read at one version, and changed one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import UserError
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.ports import RegisteredTool
from rayloom.dag.values import JsonObject
from rayloom.db.engine import driver, dump
from rayloom.db.skills import refer

# Any number that nobody else uses for an advisory lock in this database: "rayt" in ASCII.
CATALOGUE_LOCK: Final = 0x72617974

COLUMNS: Final = (
    "name, description, version, schema, output_schema, endpoint, type, config, resources, lane, permission_level"
)
GIVEN: Final = (
    "jsonb_to_recordset($1::jsonb) AS given (id uuid, name text, description text, version text, schema jsonb, "
    "output_schema jsonb, endpoint text, type text, config jsonb, resources jsonb, lane text, permission_level text)"
)
_WRITE_BUILT_IN: Final = f"""
    INSERT INTO tools (id, {COLUMNS}, built_in) SELECT id, {COLUMNS}, true FROM {GIVEN} ORDER BY name
    ON CONFLICT (name) DO UPDATE SET
        description = excluded.description, version = excluded.version, schema = excluded.schema,
        output_schema = excluded.output_schema, endpoint = excluded.endpoint, type = excluded.type,
        -- What an admin set stays.
        config = CASE WHEN tools.built_in THEN tools.config || excluded.config ELSE excluded.config END,
        resources = excluded.resources, lane = excluded.lane,
        permission_level = excluded.permission_level, built_in = true, server = NULL, updated_at = now(),
        -- What an admin switched off stays off; a name that we took from somebody else starts switched on.
        is_active = tools.is_active OR NOT tools.built_in
"""
_RENEW: Final = f"""
    UPDATE tools t SET
        description = given.description, version = given.version, schema = given.schema,
        output_schema = given.output_schema, config = t.config || given.config, resources = given.resources,
        lane = given.lane,
        permission_level = given.permission_level, updated_at = now()
    FROM {GIVEN} WHERE t.name = given.name AND t.endpoint = given.endpoint AND NOT t.built_in
"""
# The tools of a server that is switched off are so, too; and its health is theirs.
_READ: Final = f"""
    SELECT {COLUMNS.replace("name", "t.name", 1)}, built_in,
        t.is_active AND coalesce(s.is_active, true) AS is_active, s.health
    FROM tools t LEFT JOIN mcp_servers s ON s.name = t.server ORDER BY t.name
"""
_ADD: Final = (
    f"INSERT INTO tools (id, {COLUMNS}) SELECT id, {COLUMNS} FROM {GIVEN} "
    "WHERE NOT EXISTS (SELECT FROM mcp_servers s WHERE s.name = given.name) "
    "ON CONFLICT (name) DO NOTHING RETURNING name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow:
    """A row of ``tools``."""

    tool: RegisteredTool
    built_in: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueReading:
    """All rows, and the number of the transaction that read them.

    PostgreSQL never hands a transaction number out twice, and readers and writers of the catalogue take turns: so a
    greater version has seen every change that a smaller one has, whichever process read it.
    """

    version: int
    rows: tuple[ToolRow, ...]


class Catalogue:
    """The table ``tools``. Every method raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def read(self) -> CatalogueReading:
        """All tools now, by name."""
        async with turn(self._engine) as connection:
            version = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
            rows = await connection.fetch(_READ)
        return CatalogueReading(version=version, rows=tuple(map(_row, rows)))

    async def write_built_in(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring the rows of the built-in tools up to date with the code. They keep whether they are switched on."""
        async with turn(self._engine) as connection:
            await connection.execute(_WRITE_BUILT_IN, given(tools))

    async def renew(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring rows of other tools up to date with what their endpoints now say of themselves."""
        with invalid_is_told():
            async with turn(self._engine) as connection:
                await connection.execute(_RENEW, given(tools))

    async def add(self, tool: RegisteredTool, contents: Sequence[str] = ()) -> None:
        """Add a tool, which keeps these contents in the blob store.

        Raises UserError (``TOOL_EXISTS``, ``TOOL_INVALID``).
        """
        with invalid_is_told():
            async with turn(self._engine) as connection:
                if await connection.fetchval(_ADD, given([tool])) is None:
                    raise UserError("TOOL_EXISTS", f"there is a tool {tool.name!r} already")
                if contents:
                    await refer(connection, tool.name, contents)

    async def set_active(self, name: str, active: bool) -> None:
        """Switch a tool on or off. Raises UserError (``TOOL_UNKNOWN``)."""
        async with turn(self._engine) as connection:
            changed = await connection.fetchval(
                "UPDATE tools SET is_active = $2, updated_at = now() WHERE name = $1 RETURNING true", name, active
            )
            if changed is None:
                raise await _unknown(connection, name)

    async def set_config(self, name: str, changes: JsonObject) -> None:
        """Change entries of a tool's config; null removes one. Raises UserError (``TOOL_UNKNOWN``)."""
        async with turn(self._engine) as connection:
            changed = await connection.fetchval(
                "UPDATE tools SET config = (config || $2::jsonb) - $3::text[], updated_at = now() "
                "WHERE name = $1 RETURNING true",
                name,
                dump(changes),
                [key for key, value in changes.items() if value is None],
            )
            if changed is None:
                raise await _unknown(connection, name)

    async def remove(self, name: str) -> None:
        """Remove a tool. Raises UserError (``TOOL_UNKNOWN``, ``TOOL_BUILT_IN``, ``TOOL_OF_SERVER``)."""
        async with turn(self._engine) as connection:
            removed = await connection.fetchval(
                "DELETE FROM tools WHERE name = $1 AND NOT built_in AND server IS NULL RETURNING true", name
            )
            if removed is not None:
                return
            left = await connection.fetchrow("SELECT server FROM tools WHERE name = $1", name)
            if left is None:
                raise await _unknown(connection, name)
            if left["server"] is not None:
                said = f"{name} belongs to the MCP server {left['server']}: remove that one, or switch the tool off"
                raise UserError("TOOL_OF_SERVER", said)
            raise UserError("TOOL_BUILT_IN", f"{name} is built in; it can be switched off, but not removed")


@asynccontextmanager
async def turn(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A transaction in which nobody else reads or writes the catalogue."""
    async with driver(engine) as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", CATALOGUE_LOCK)
        yield connection


@contextmanager
def invalid_is_told() -> Iterator[None]:
    """Raise UserError (``TOOL_INVALID``) for what PostgreSQL can't take."""
    try:
        yield
    except (orjson.JSONEncodeError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise UserError("TOOL_INVALID", f"the tool can't be stored: {error}") from error


async def _unknown(connection: asyncpg.Connection[asyncpg.Record], name: str) -> UserError:
    known = [row["name"] for row in await connection.fetch("SELECT name FROM tools ORDER BY name")]
    return UserError("TOOL_UNKNOWN", f"there is no tool {name!r}{did_you_mean(name, known)}")


def given(tools: Sequence[RegisteredTool]) -> str:
    """Tools as the JSON that `GIVEN` takes."""
    return dump(
        [
            {
                "id": str(uuid7()),
                "name": tool.name,
                "description": tool.description,
                "version": tool.version,
                "schema": tool.schema,
                "output_schema": tool.output_schema,
                "endpoint": tool.endpoint,
                "type": tool.type,
                "config": tool.config,
                "resources": dict(tool.resources),
                "lane": tool.lane,
                "permission_level": tool.permission_level,
            }
            for tool in tools
        ]
    )


def _row(row: asyncpg.Record) -> ToolRow:
    tool = RegisteredTool(
        name=row["name"],
        type=row["type"],
        description=row["description"],
        version=row["version"],
        schema=row["schema"],
        output_schema=row["output_schema"],
        endpoint=row["endpoint"],
        config=row["config"] if row["health"] is None else {**row["config"], "health": row["health"]},
        resources=row["resources"],
        lane=row["lane"],
        permission_level=row["permission_level"],
        is_active=row["is_active"],
    )
    return ToolRow(tool=tool, built_in=row["built_in"])
