"""Connections that now and then break, for real: those of asyncpg and Redis, with an injector at their seams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncConnection

from rayloom.db import faults
from rayloom.db.faults import DATABASE, REDIS, Injector, When

_WORDS = 100
"""So many bytes of a command tell which one it is."""
_STATEMENTS = frozenset({"execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_records_to_table"})


class FaultyConnection:
    """An asyncpg connection that may be lost before each statement, and between a statement and its answer."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], injector: Injector) -> None:
        self._connection, self._injector = connection, injector

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in _STATEMENTS:
            return found

        async def statement(*arguments: Any, **named: Any) -> Any:
            what = f"{name} {arguments[0]}"
            await self._pass("before", what)
            answer = await found(*arguments, **named)
            await self._pass("after", what)
            return answer

        return statement

    @asynccontextmanager
    async def transaction(self, **named: Any) -> AsyncIterator[None]:
        """One whose end may be lost as well: before its commit, and with the answer to it."""
        async with self._connection.transaction(**named):
            yield
            await self._pass("before", "COMMIT")
        await self._pass("after", "COMMIT")

    async def _pass(self, when: When, what: str) -> None:
        if await self._injector.strikes(DATABASE, when, what):
            # The socket is closed at once, as when the server is killed: what was not committed is gone.
            self._connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError(f"fault injected {when} a statement: the connection is lost")


def faulty(connection: asyncpg.Connection[asyncpg.Record], injector: Injector) -> asyncpg.Connection[asyncpg.Record]:
    """The connection with faults at its seams."""
    return cast("asyncpg.Connection[asyncpg.Record]", FaultyConnection(connection, injector))


def make_faulty(pool: ConnectionPool, injector: Injector) -> None:
    """Let the connections of a pool of Redis break now and then."""

    class FaultyRedis(pool.connection_class):  # type: ignore[misc,name-defined]  # a class that the URL chose
        asked = ""

        async def send_packed_command(self, command: Any, *arguments: Any, **named: Any) -> None:
            packed = command if isinstance(command, bytes) else b"".join(command)
            self.asked = packed[:_WORDS].decode(errors="replace")
            await _pass(self, "before", self.asked)
            await super().send_packed_command(command, *arguments, **named)

        async def read_response(self, *arguments: Any, **named: Any) -> Any:
            answer = await super().read_response(*arguments, **named)
            await _pass(self, "after", self.asked)
            return answer

    async def _pass(connection: AbstractConnection, when: When, what: str) -> None:
        if await injector.strikes(REDIS, when, what):
            await connection.disconnect(nowait=True)
            raise RedisConnectionError(f"fault injected {when} a command: the connection is lost")

    pool.connection_class = FaultyRedis


async def lose(connection: AsyncConnection, when: When) -> None:
    """Lose a pooled connection, if a fault strikes now. Raises what the driver raises when that happens."""
    if faults.injector is not None and await faults.injector.strikes(DATABASE, when):
        await connection.invalidate()
        raise asyncpg.ConnectionDoesNotExistError(f"fault injected {when} a statement: the connection is lost")
