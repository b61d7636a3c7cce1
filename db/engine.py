"""Engines and connections to PostgreSQL.

Statements of the API go through SQLAlchemy. The engine's guarded writes call one database function each and go
straight to the asyncpg connection under a pooled SQLAlchemy connection: one round trip, one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.output import sanitise
from rayloom.db import faults
from rayloom.db.faulty import faulty

CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 60.0
"""No statement takes so long (migrations have engines of their own): a server that is silent longer is away, even when
its connections still stand."""
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for a connection to be made, for a statement, and for a connection of the pool to be free."""

    connect_s: float
    command_s: float
    pool_s: float = 30.0


def make_engine(
    url: str, *, pool_size: int, max_overflow: int, name: str, timeouts: Timeouts | None = None
) -> AsyncEngine:
    """An engine for this process and event loop. ``name`` shows in ``pg_stat_activity``."""
    timeouts = timeouts or Timeouts(connect_s=CONNECT_TIMEOUT_S, command_s=COMMAND_TIMEOUT_S)
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=max_overflow,
        pool_timeout=timeouts.pool_s,
        json_serializer=lambda value: orjson.dumps(value).decode(),
        json_deserializer=orjson.loads,
        connect_args={
            "timeout": timeouts.connect_s,
            "command_timeout": timeouts.command_s,
            "server_settings": {"application_name": name, "jit": "off"},
        },
    )
    event.listen(engine.sync_engine, "checkout", _replace_if_closed)
    return engine


def _replace_if_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool replace a connection that its server has closed, as one that was restarted has.

    SQLAlchemy's ``pool_pre_ping`` asks the server, which takes three round trips at every use of a connection. asyncpg
    knows as soon as the socket is closed. A server that is silent keeps both waiting until ``command_s``.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


class Line:
    """One connection that is kept between uses, for a loop that speaks all the time: no checkout.

    For one user at a time. A connection that has failed is replaced at the next use.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None

    async def open(self) -> AsyncConnection:
        """The connection, made anew when there is none."""
        if self._connection is None:
            self._connection = await self._engine.connect()
        return self._connection

    async def drop(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()


Source = AsyncEngine | Line


@asynccontextmanager
async def driver(source: Source) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """The asyncpg connection of a pooled connection, in autocommit. Raises Transient when the database is away."""
    try:
        if isinstance(source, Line):
            yield await _raw(await source.open())
        else:
            async with source.connect() as connection, cut_when_silent(connection):
                yield await _raw(connection)
    except (SQLAlchemyError, *DRIVER_ERRORS, OSError) as error:
        if not is_unavailable(error):
            raise
        if isinstance(source, Line):
            await source.drop()
        raise unavailable(error) from error
    except asyncio.CancelledError:
        if isinstance(source, Line):
            await source.drop()
        raise


@asynccontextmanager
async def cut_when_silent(connection: AsyncConnection) -> AsyncIterator[None]:
    """A connection on which an answer is overdue does not go back to the pool: the next user would wait for it, too.

    Nor does one whose user was cancelled: it may be in a transaction that was begun and that nobody knows of, in which
    all that the next user writes would be lost.
    """
    try:
        yield
    except (TimeoutError, asyncio.CancelledError):
        await connection.invalidate()
        raise


async def _raw(connection: AsyncConnection) -> asyncpg.Connection[asyncpg.Record]:
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    return raw if faults.injector is None else faulty(raw, faults.injector)


def unavailable(error: BaseException) -> Transient:
    """What to say of an error that is nobody's but the database's."""
    return Transient("DATABASE_UNAVAILABLE", f"the database did not answer: {type(error).__name__}")


async def takes_writes(source: Source) -> bool:
    """Whether a connection can be had, answers, and may write."""
    with suppress(Transient):
        async with driver(source) as connection:
            return bool(await connection.fetchval("SELECT current_setting('transaction_read_only') = 'off'"))
    return False


# SQLSTATEs, or their classes: connection exception, a primary that has become read-only, a transaction that idled or
# lasted too long, transaction rollback (a deadlock: the same statement may be sent again), insufficient resources,
# lock and statement timeouts, operator intervention (shutting down, starting up), system and internal errors.
_AWAY_STATES = ("08", "25006", "25P03", "25P04", "40", "53", "55P03", "57014", "57P", "58", "XX")
# Data exceptions (the driver gives its own the same class), violated constraints, exceeded limits.
_REFUSED_STATES = ("22", "23", "54")


def is_unavailable(error: BaseException) -> bool:
    """Whether an error says that the database is away, rather than that the statement is wrong."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return error.connection_invalidated or isinstance(error, InterfaceError) or state.startswith(_AWAY_STATES)
    if isinstance(error, asyncpg.InternalClientError):
        # What a statement meets after the server has taken its leave, and before it has hung up; or an answer that the
        # driver does not understand. Nothing of either is the statement's fault, and the connection is of no more use.
        return True
    if isinstance(error, asyncpg.InterfaceError):
        # The driver's word for a closed connection; as a ValueError, its word for a value that it can't encode.
        return not isinstance(error, ValueError)
    state = getattr(error, "sqlstate", None) or ""
    return isinstance(error, OSError | PoolTimeout) or state.startswith(_AWAY_STATES)


# Disk and connections. Not memory, nor the limits that are set: what is smaller may pass those.
_EXHAUSTED_STATES = ("53000", "53100", "53300")


def is_exhausted(error: BaseException | None) -> bool:
    """Whether the server has run out of what it needs for any statement: none is to blame for that."""
    return getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None) in _EXHAUSTED_STATES


def is_refusal(error: BaseException) -> bool:
    """Whether an error says that these very data can't be stored, now or ever."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_REFUSED_STATES)
    return isinstance(error, ValueError | TypeError | OverflowError)


def dump(value: Any) -> str:
    """JSON text for a ``jsonb`` parameter."""
    return orjson.dumps(value).decode()


def dump_error(error: ErrorInfo) -> str:
    """An error as JSON text. Its words may come from anywhere: what PostgreSQL refuses in them is replaced."""
    return dump(sanitise(error.as_json()))


def dump_sorted(value: Any) -> str:
    """JSON text that is the same for equal values: a key."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
