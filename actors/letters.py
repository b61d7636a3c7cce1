"""What becomes of dead letters in time: each is told to a stream in Redis, and forgotten when it is of no more use."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.bound import Bound
from rayloom.db import letters
from rayloom.db.letter_stream import LetterStream
from rayloom.db.queue import REDIS_AWAY
from rayloom.db.reads import Record

_log = logging.getLogger(__name__)

MIRROR_ROWS = 500
FORGET_ROWS = 1000


class _NotTold(Exception):
    """Redis is away."""


class LetterKeeper:
    """Mirrors letters and forgets old ones. Both bounded, and safe beside other schedulers that do the same."""

    def __init__(self, engine: AsyncEngine, redis: Redis, *, retention_s: float) -> None:
        self._engine, self._stream, self._retention_s = engine, LetterStream(redis), retention_s
        self._calls = Bound()

    async def mirror(self) -> int:
        """Tell the stream letters that it hasn't been told; gives how many. Without Redis they wait in PostgreSQL."""
        try:
            return await letters.mirror_letters(self._engine, self._tell, limit=MIRROR_ROWS)
        except _NotTold as error:
            _log.warning("letters.not_mirrored", extra={"error": str(error)})
            return 0

    async def _tell(self, rows: Sequence[Record]) -> None:
        try:
            await self._calls.call(lambda: self._stream.add(rows))
        except REDIS_AWAY as error:
            # Under another name: the database is not to be blamed for a time-out of Redis.
            raise _NotTold(f"{type(error).__name__}: {error}") from error

    async def forget(self) -> int:
        """Delete letters of which nothing can come any more, when their time of retention is over; gives how many."""
        gone = await letters.forget_settled(self._engine, older_than_s=self._retention_s, limit=FORGET_ROWS)
        if gone:
            _log.info("letters.forgotten", extra={"count": gone})
        return gone
