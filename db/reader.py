"""Connections for reads: rows as mappings, and an error that says "not now" when the database is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.dag.errors import Transient
from rayloom.db.engine import DRIVER_ERRORS, cut_when_silent, is_unavailable
from rayloom.db.faulty import lose
from rayloom.db.standby import StandbyRead

RETRY_AFTER_S = 2.0

ReadSource: TypeAlias = AsyncEngine | StandbyRead
"""What can be read from: the primary, or a replica once it is far enough."""


@asynccontextmanager
async def reading(source: ReadSource) -> AsyncIterator[AsyncConnection]:
    """A connection whose statements see what is committed when each of them starts.

    Raises Transient (``DATABASE_UNAVAILABLE``) when the database is away or every connection is taken.
    """
    try:
        opened = source.opened() if isinstance(source, StandbyRead) else source.connect()
        async with opened as connection, cut_when_silent(connection):
            await lose(connection, "before")
            yield connection
            await lose(connection, "after")
    except PoolTimeout as error:
        raise _away("every connection to the database is in use") from error
    except (DBAPIError, OSError, *DRIVER_ERRORS) as error:
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
