"""Connections for reads: rows as mappings, and an error that says "not now" when the database is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.dag.errors import Transient
from rayloom.db.engine import cut_when_silent, is_unavailable

RETRY_AFTER_S = 2.0


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements see what is committed when each of them starts.

    Raises Transient (``DATABASE_UNAVAILABLE``) when the database is away or every connection is taken.
    """
    try:
        async with engine.connect() as connection, cut_when_silent(connection):
            yield connection
    except PoolTimeout as error:
        raise _away("every connection to the database is in use") from error
    except (DBAPIError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if not is_unavailable(error):
            raise
        raise _away(f"the database did not answer: {type(error).__name__}") from error


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """The same as one transaction, committed at the end unless an error leaves the block."""
    async with reading(engine) as connection, connection.begin():
        yield connection


def _away(message: str) -> Transient:
    return Transient("DATABASE_UNAVAILABLE", message, retry_after_s=RETRY_AFTER_S)
