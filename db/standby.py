"""A read on the replica that sees all that was committed on the primary when the read was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.db.engine import driver

CHECK_TIMEOUT_S: Final = 1.0
"""A replica that does not say within this how far it is does not live."""
_FIRST_PAUSE_S: Final = 0.002
# A commit is seen by others only after it was flushed (``synchronous_commit`` is on), and a replica gets what was
# flushed. Only ``reserve_calls`` commits without that: what is reserved may be seen here a moment late.
# NULL where the primary has become a standby itself.
_WRITTEN: Final = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8 END"
_REPLAYED: Final = "SELECT pg_is_in_recovery(), (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8"


class Behind(Exception):
    """The replica has not replayed what this read must see."""


class NoStandby(Exception):
    """What is read from is no standby (any more): nobody knows what it shows."""


async def written_position(primary: AsyncEngine) -> int | None:
    """How far the primary has written, in bytes of WAL; None when it is no primary. Raises Transient."""
    async with driver(primary) as connection:
        position: int | None = await connection.fetchval(_WRITTEN)
    return position


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyRead:
    """A replica, the position that it must have replayed, and how long that may be waited for."""

    engine: AsyncEngine
    position: int
    patience_s: float

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AsyncConnection]:
        """A connection to a server that has got so far. Raises Behind and NoStandby."""
        async with self.engine.connect() as connection:
            try:
                # Asked on the connection of the read: behind one address there may be several replicas.
                await self._catch_up((await connection.get_raw_connection()).driver_connection)
                yield connection
            except asyncio.CancelledError:
                # Nobody waits any more, maybe because the server is silent: it would be silent for the next one, too.
                await connection.invalidate()
                raise

    async def _catch_up(self, raw: asyncpg.Connection[Any] | None) -> None:
        assert raw is not None
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + self.patience_s, _FIRST_PAUSE_S
        while True:
            is_standby, replayed = await raw.fetchrow(_REPLAYED, timeout=CHECK_TIMEOUT_S) or (False, None)
            if not is_standby:
                raise NoStandby
            if replayed is not None and replayed >= self.position:
                return
            if replayed is None or loop.time() + pause_s > until:
                raise Behind
            await asyncio.sleep(pause_s)
            pause_s *= 2
