"""Copies of blobs in Redis, for a time: what workers read first. A hint: flushed, slow or away, it only costs time.

Redis may be small, and holds the queue as well: a copy has at most ``LARGEST_BYTES``, and all that were made within one
time of keeping at most ``WINDOW_BYTES``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.client import NEVER_DECODE

from rayloom.db.queue import PREFIX, REDIS_AWAY

_log = logging.getLogger(__name__)

LARGEST_BYTES: Final = 4 * 1024 * 1024
WINDOW_BYTES: Final = 256 * 1024 * 1024
REDIS_S: Final = 0.5
"""Longer than this nothing waits for Redis."""
MGET: Final = 16
"""So many copies are asked for in one call: Redis does nothing else meanwhile."""
AWAY_S: Final = 5.0
"""So long it is not asked again when it was away, or too slow."""

BYTES: Final = PREFIX + "blob-bytes"

# KEYS: the copy, the bytes of this window. ARGV: the content, milliseconds, the most bytes of a window.
KEEP = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
local used = redis.call('INCRBY', KEYS[2], #ARGV[1])
if used == #ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
if used > tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

T = TypeVar("T")


class BlobCache:
    """The copies. Nothing here ever raises, nor takes long."""

    def __init__(self, redis: Redis, *, ttl_s: float, window_bytes: int = WINDOW_BYTES) -> None:
        self._redis, self._ttl_ms, self._window_bytes = redis, max(1, int(ttl_s * 1000)), window_bytes
        self._keep = redis.register_script(KEEP)
        self._away_until = 0.0

    async def get(self, names: Sequence[str]) -> dict[str, bytes]:
        """Those of these copies that there are. Nobody has looked yet whether they are what they should be."""
        found: dict[str, bytes] = {}
        for start in range(0, len(names), MGET):
            asked = names[start : start + MGET]
            answer = await self._mget([_copy(name) for name in asked])
            found |= {name: data for name, data in zip(asked, answer, strict=False) if data is not None}
        return found

    async def _mget(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        # The client makes text of all others.
        found: list[bytes | None] | None = await self._ask(
            lambda: self._redis.execute_command("MGET", *keys, **{NEVER_DECODE: True})  # type: ignore[no-untyped-call]
        )
        return found or ()

    async def keep(self, name: str, data: bytes) -> None:
        """Keep a copy, unless it is large, or there are many already."""
        if len(data) <= LARGEST_BYTES:
            keys = [_copy(name), BYTES]
            await self._ask(lambda: self._keep(keys=keys, args=[data, self._ttl_ms, self._window_bytes]))

    async def drop(self, name: str) -> None:
        """Forget a copy."""
        await self._ask(lambda: self._redis.delete(_copy(name)))

    async def _ask(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        if monotonic() < self._away_until:
            return None
        try:
            async with asyncio.timeout(REDIS_S):
                return await ask()
        except REDIS_AWAY as error:
            self._away_until = monotonic() + AWAY_S
            _log.info("blobs.cache_away: %s", type(error).__name__)
            return None


def _copy(name: str) -> str:
    return f"{PREFIX}blob:{name}"
