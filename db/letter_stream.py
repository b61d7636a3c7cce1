"""A stream in Redis that tells of every subtask that becomes a dead letter: for those who want to subscribe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redis.asyncio import Redis

from rayloom.db.queue import PREFIX
from rayloom.db.reads import Record

STREAM: Final = PREFIX + "dead-letters"
KEPT: Final = 10_000
"""About so many entries; PostgreSQL has the letters themselves."""
STREAM_TTL_S: Final = 30 * 86_400
"""A stream to which nothing is added for so long goes away."""
_MESSAGE_CHARS: Final = 1000


class LetterStream:
    """The stream. Every method raises one of ``REDIS_AWAY`` when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def add(self, rows: Sequence[Record]) -> None:
        """Add letters, in their order."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.xadd(
                    STREAM,
                    {
                        "id": str(row.id),
                        "task_id": str(row.task_id),
                        "user_id": str(row.user_id),
                        "subtask": row.subtask,
                        "tool": row.tool,
                        "code": row.code,
                        "message": str(row.error.get("message", ""))[:_MESSAGE_CHARS],
                        "fingerprint": row.fingerprint,
                        "attempts": row.attempts,
                        "at": row.at.isoformat(),
                    },
                    maxlen=KEPT,
                    approximate=True,
                )
            pipe.expire(STREAM, STREAM_TTL_S)
            await pipe.execute()
