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
from rayloom.db.engine import driver, dump

# Any number that nobody else uses for an advisory lock in this database: "rayt" in ASCII.
CATALOGUE_LOCK: Final = 0x72617974

_COLUMNS: Final = (
    "name, description, version, schema, output_schema, endpoint, type, config, resources, lane, permission_level"
)
_GIVEN: Final = (
    "jsonb_to_recordset($1::jsonb) AS given (id uuid, name text, description text, version text, schema jsonb, "
    "output_schema jsonb, endpoint text, type text, config jsonb, resources jsonb, lane text, permission_level text)"
)
_WRITE_BUILT_IN: Final = f"""
    INSERT INTO tools (id, {_COLUMNS}, built_in) SELECT id, {_COLUMNS}, true FROM {_GIVEN} ORDER BY name
    ON CONFLICT (name) DO UPDATE SET
        description = excluded.description, version = excluded.version, schema = excluded.schema,
        output_schema = excluded.output_schema, endpoint = excluded.endpoint, type = excluded.type,
        config = excluded.config, resources = excluded.resources, lane = excluded.lane,
        permission_level = excluded.permission_level, built_in = true, updated_at = now(),
        -- What an admin switched off stays off; a name that we took from somebody else starts switched on.
        is_active = tools.is_active OR NOT tools.built_in
"""
_RENEW: Final = f"""
    UPDATE tools t SET
        description = given.description, version = given.version, schema = given.schema,
        output_schema = given.output_schema, resources = given.resources, lane = given.lane,
        permission_level = given.permission_level, updated_at = now()
    FROM {_GIVEN} WHERE t.name = given.name AND t.endpoint = given.endpoint AND NOT t.built_in
"""
_ADD: Final = (
    f"INSERT INTO tools (id, {_COLUMNS}) SELECT id, {_COLUMNS} FROM {_GIVEN} "
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
        async with self._turn() as connection:
            version = await connection.fetchval("SELECT pg_current_xact_id()::text::bigint")
            rows = await connection.fetch(f"SELECT {_COLUMNS}, is_active, built_in FROM tools ORDER BY name")
        return CatalogueReading(version=version, rows=tuple(map(_row, rows)))

    async def write_built_in(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring the rows of the built-in tools up to date with the code. They keep whether they are switched on."""
        async with self._turn() as connection:
            await connection.execute(_WRITE_BUILT_IN, _given(tools))

    async def renew(self, tools: Sequence[RegisteredTool]) -> None:
        """Bring rows of other tools up to date with what their endpoints now say of themselves."""
        with _invalid_is_told():
            async with self._turn() as connection:
                await connection.execute(_RENEW, _given(tools))

    async def add(self, tool: RegisteredTool) -> None:
        """Add a tool. Raises UserError (``TOOL_EXISTS``, ``TOOL_INVALID``)."""
        with _invalid_is_told():
            async with self._turn() as connection:
                if await connection.fetchval(_ADD, _given([tool])) is None:
                    raise UserError("TOOL_EXISTS", f"there is a tool {tool.name!r} already")

    async def set_active(self, name: str, active: bool) -> None:
        """Switch a tool on or off. Raises UserError (``TOOL_UNKNOWN``)."""
        async with self._turn() as connection:
            changed = await connection.fetchval(
                "UPDATE tools SET is_active = $2, updated_at = now() WHERE name = $1 RETURNING true", name, active
            )
            if changed is None:
                raise await _unknown(connection, name)

    async def remove(self, name: str) -> None:
        """Remove a tool. Raises UserError (``TOOL_UNKNOWN``, ``TOOL_BUILT_IN``)."""
        async with self._turn() as connection:
            removed = await connection.fetchval(
                "DELETE FROM tools WHERE name = $1 AND NOT built_in RETURNING true", name
            )
            if removed is not None:
                return
            if await connection.fetchval("SELECT true FROM tools WHERE name = $1", name) is None:
                raise await _unknown(connection, name)
            raise UserError("TOOL_BUILT_IN", f"{name} is built in; it can be switched off, but not removed")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        async with driver(self._engine) as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", CATALOGUE_LOCK)
            yield connection


@contextmanager
def _invalid_is_told() -> Iterator[None]:
    try:
        yield
    except (orjson.JSONEncodeError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        raise UserError("TOOL_INVALID", f"the tool can't be stored: {error}") from error


async def _unknown(connection: asyncpg.Connection[asyncpg.Record], name: str) -> UserError:
    known = [row["name"] for row in await connection.fetch("SELECT name FROM tools ORDER BY name")]
    return UserError("TOOL_UNKNOWN", f"there is no tool {name!r}{did_you_mean(name, known)}")


def _given(tools: Sequence[RegisteredTool]) -> str:
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
        config=row["config"],
        resources=row["resources"],
        lane=row["lane"],
        permission_level=row["permission_level"],
        is_active=row["is_active"],
    )
    return ToolRow(tool=tool, built_in=row["built_in"])
