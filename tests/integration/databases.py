"""Databases of tests: copies of one that was migrated once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from uuid_utils.compat import uuid7

from rayloom.db.settings import DatabaseSettings


async def administer(url: str, *statements: str) -> None:
    """Run statements that no transaction may hold, each by itself."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def dropping(name: str) -> tuple[str, str]:
    """Give the statements that drop a database, for `administer`.

    Not ``WITH (FORCE)``: only a superuser may end a session of another role, or autovacuum's. ``DROP`` itself stops
    autovacuum, and waits up to 5 s for sessions that are closing.
    """
    return (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = '{name}' AND usename = current_user AND pid <> pg_backend_pid()",
        f"DROP DATABASE {name}",
    )


def url_of(server_url: str, name: str) -> str:
    """Give the URL of another database of the same server."""
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def copy_of(server_url: str, template: str) -> Iterator[DatabaseSettings]:
    """Copy a database, and drop the copy after the block."""
    name = f"rl_{uuid7().hex}"
    asyncio.run(administer(server_url, f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield DatabaseSettings(url=SecretStr(url_of(server_url, name)))
    asyncio.run(administer(server_url, *dropping(name)))
