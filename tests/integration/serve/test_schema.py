"""The tables that statements are built from are those that the migrations make."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from rayloom.db.schema import metadata
from rayloom.db.schema_blobs import blobs
from rayloom.db.schema_breakers import breakers
from rayloom.db.schema_letters import dead_letters
from rayloom.db.schema_mcp import mcp_servers
from rayloom.db.settings import DatabaseSettings


def _differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, breakers.metadata))


async def test_the_schema_equals_the_migrated_database(database: DatabaseSettings) -> None:
    # Tables of other files are among them.
    assert dead_letters.metadata is blobs.metadata is mcp_servers.metadata is metadata
    engine = create_async_engine(database.primary_dsn(), poolclass=NullPool)
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
        # Held against itself with a table left out, the comparison is known to see something.
        await connection.exec_driver_sql("ALTER TABLE quotas ADD COLUMN extra integer")
        assert len(await connection.run_sync(_differences)) == 1
        await connection.rollback()
    await engine.dispose()
