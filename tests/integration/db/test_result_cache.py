"""Kept results in a real Redis: one owner a call, and nothing that outlives its time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from rayloom.db.queue import PREFIX, make_redis
from rayloom.db.result_cache import MAKING_MS, Look, ResultCache
from rayloom.db.settings import RedisSettings


@pytest.fixture
async def redis(servers: tuple[str, str]) -> AsyncIterator[Redis]:
    redis = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    yield redis
    await redis.aclose()


@pytest.fixture
def key() -> str:
    return uuid7().hex


async def test_one_at_a_time(redis: Redis, key: str) -> None:
    cache = ResultCache(redis)
    assert await cache.look(key, "a") == Look(is_mine=True)
    assert await cache.look(key, "b") == Look()
    assert await cache.go_on(key, "a")
    assert not await cache.go_on(key, "b")
    await cache.give_up(key, "b")
    assert await cache.look(key, "b") == Look()
    await cache.give_up(key, "a")
    assert await cache.look(key, "b") == Look(is_mine=True)


async def test_what_is_kept_is_found_and_its_owner_forgotten(redis: Redis, key: str) -> None:
    cache = ResultCache(redis)
    await cache.look(key, "a")
    await cache.keep(key, "a", "{}", ttl_s=60)
    assert await cache.look(key, "b") == Look(kept="{}")
    assert await redis.exists(f"{PREFIX}making:{key}") == 0
    assert 0 < await redis.pttl(f"{PREFIX}result:{key}") <= 60_000


async def test_nothing_stays_for_ever(redis: Redis, key: str) -> None:
    cache = ResultCache(redis)
    await cache.look(key, "a")
    assert 0 < await redis.pttl(f"{PREFIX}making:{key}") <= MAKING_MS
    # Its owner was silent for too long, and somebody else took over: what it says late changes nothing for that one.
    await redis.delete(f"{PREFIX}making:{key}")
    assert await cache.look(key, "b") == Look(is_mine=True)
    await cache.keep(key, "a", "late", ttl_s=60)
    assert await cache.go_on(key, "b")
