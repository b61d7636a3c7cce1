"""The database and Redis as one process of the API holds them: engines, queue, wake-ups, and how they are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.blobs import BlobStore
from rayloom.db.engine import make_engine
from rayloom.db.queue import REDIS_AWAY, TASKS, Queued, ReadyQueue, Signals, make_redis
from rayloom.db.read_split import REPLICA_TIMEOUTS, ReadSplit
from rayloom.db.reader import reading
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.db.wakeups import Wakeups

OFFER_TIMEOUT_S: Final = 2.0
"""A request does not wait longer for a Redis that hangs: what it did is in the database already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Live connections of this process and event loop. ``reads``: the way to the replica."""

    primary: AsyncEngine
    reads: ReadSplit
    redis: Redis
    queue: ReadyQueue
    signals: Signals
    wakeups: Wakeups
    blobs: BlobStore

    def start(self) -> None:
        """Begin to listen for wake-ups, and to watch the replica."""
        self.wakeups.start()
        self.reads.start()

    async def close(self) -> None:
        """Give every connection back."""
        await self.wakeups.stop()
        await self.reads.stop()
        await self.primary.dispose()
        await self.redis.aclose()

    async def probe_database(self) -> None:
        """Raises Transient when the primary does not answer."""
        async with reading(self.primary) as connection:
            await connection.execute(text("SELECT 1"))

    async def probe_redis(self) -> None:
        """Raises one of ``REDIS_AWAY`` when Redis does not answer."""
        await self.redis.ping()

    async def offer(self, queued: tuple[Queued, ...], *task_ids: str) -> bool:
        """Put what became QUEUED into the queue and tell who follows the tasks. False when Redis is away."""
        try:
            async with asyncio.timeout(OFFER_TIMEOUT_S):
                if queued:
                    await self.queue.push(queued)
                else:
                    await self.signals.wake(TASKS)
                await self.signals.tell(task_ids)
        except REDIS_AWAY:
            return False
        return True

    async def waiting(self) -> dict[str, int] | None:
        """How many subtasks wait in Redis, by shape; None when Redis is away."""
        try:
            async with asyncio.timeout(1):
                return await self.queue.waiting()
        except REDIS_AWAY:
            return None


def open_backends(database: DatabaseSettings, redis: RedisSettings, blobs: BlobSettings, *, name: str) -> Backends:
    """Engines and clients of this process; nothing is connected yet."""
    pool_size, max_overflow = database.pool_size, database.max_overflow
    primary = make_engine(database.primary_dsn(), name=name, pool_size=pool_size, max_overflow=max_overflow)
    replica = None
    if database.replica_url is not None:
        replica = make_engine(
            database.replica_url.get_secret_value(),
            name=name,
            pool_size=pool_size,
            max_overflow=max_overflow,
            timeouts=REPLICA_TIMEOUTS,
        )
    client = make_redis(redis, name=name)
    signals = Signals(client)
    return Backends(
        primary=primary,
        reads=ReadSplit(primary, replica, max_lag_s=database.replica_max_lag_s),
        redis=client,
        queue=ReadyQueue(client),
        signals=signals,
        wakeups=Wakeups(client),
        blobs=BlobStore(primary, client, blobs),
    )
