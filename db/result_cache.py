"""Results of calls, kept in Redis for equal calls, and who is making one just now: hints, never the truth.

Two keys a call: ``…:result:<key>`` holds the result until its time is up, ``…:making:<key>`` the token of whoever is at
it, so that equal calls at the same time are made once. The second expires by itself when its owner dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from rayloom.db.queue import PREFIX

MAKING_MS: Final = 15_000
"""How long an owner that says nothing more keeps the others waiting."""

# KEYS: result, making. ARGV: token, milliseconds. One round trip: the result, or whether the call is the caller's.
LOOK = """
local kept = redis.call('GET', KEYS[1])
if kept then return {kept, 0} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {false, 1} end
return {false, 0}
"""
# Only its owner may prolong it or give it up. ARGV: token, milliseconds; 0 gives it up.
HOLD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known of a call: its ``kept`` result, or that it is the caller's to make; else somebody is at it."""

    kept: str | None = None
    is_mine: bool = False


class ResultCache:
    """The two keys of a call. Every method raises one of ``REDIS_AWAY`` when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._look = redis.register_script(LOOK)
        self._hold = redis.register_script(HOLD)

    async def look(self, key: str, token: str) -> Look:
        """The kept result; where there is none, the call becomes that of ``token``, unless somebody else is at it."""
        kept, mine = await self._look(keys=[_result(key), _making(key)], args=[token, MAKING_MS])
        return Look(kept=kept, is_mine=bool(mine))

    async def go_on(self, key: str, token: str) -> bool:
        """Say that ``token`` is still at it. False: it was silent for too long, and may not be the only one."""
        return bool(await self._hold(keys=[_making(key)], args=[token, MAKING_MS]))

    async def give_up(self, key: str, token: str) -> None:
        """The call of ``token`` is over: the next one may be made."""
        await self._hold(keys=[_making(key)], args=[token, 0])

    async def keep(self, key: str, token: str, result: str, *, ttl_s: float) -> None:
        """Keep a result, and let those who wait for it go on."""
        await self._redis.set(_result(key), result, px=max(1, int(ttl_s * 1_000)))
        await self.give_up(key, token)


def _result(key: str) -> str:
    return f"{PREFIX}result:{key}"


def _making(key: str) -> str:
    return f"{PREFIX}making:{key}"
