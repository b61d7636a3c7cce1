"""The ready queue in Redis, and the one in memory that stands in for it in unit tests: one behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from rayloom.db.queue import REDIS_AWAY, SHAPES, WAKE, Queued, ReadyQueue, Signals, make_redis
from rayloom.db.settings import RedisSettings
from tests.fakes.memory_queue import MemoryQueue


@pytest.fixture(params=["Redis", "memory"])
async def queue(request: pytest.FixtureRequest, servers: tuple[str, str]) -> AsyncIterator[ReadyQueue]:
    if request.param == "memory":
        yield MemoryQueue()
        return
    redis = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    yield ReadyQueue(redis)
    await redis.aclose()


@pytest.fixture
def shape() -> str:
    """A shape of this test's own."""
    return f'{{"test":"{uuid7()}"}}'


def _items(shape: str, *scores: float) -> list[Queued]:
    return [Queued(f"s{n}", f"user {n}", shape, score) for n, score in enumerate(scores)]


async def test_the_best_come_first_and_no_more_than_there_is_room_for(queue: ReadyQueue, shape: str) -> None:
    a, b, c, d = items = _items(shape, 3.0, 1.0, 2.0, 2.0)
    await queue.push(items, wake=False)
    popped = await queue.pop({shape: 3})
    assert popped.items == (b, c, d)
    assert popped.waiting[shape] == 1
    assert (await queue.pop({shape: 9})).items == (a,)
    assert shape not in (await queue.pop({shape: 9})).waiting


async def test_a_shape_without_room_does_not_stand_in_the_way(queue: ReadyQueue, shape: str) -> None:
    other = shape + " "
    await queue.push([*_items(shape, 1.0, 2.0), *_items(other, 3.0)], wake=False)
    popped = await queue.pop({shape: 0, other: 1})
    assert [item.shape for item in popped.items] == [other]
    assert popped.waiting[shape] == 2
    assert other not in popped.waiting
    assert len((await queue.pop({shape: 2})).items) == 2


async def test_who_is_pushed_twice_is_there_once(queue: ReadyQueue, shape: str) -> None:
    items = _items(shape, 1.0)
    await queue.push(items, wake=False)
    await queue.push(items, wake=False)
    assert (await queue.pop({shape: 9})).items == tuple(items)


async def test_scores_are_kept_to_the_last_bit(queue: ReadyQueue, shape: str) -> None:
    items = _items(shape, float(2**53 - 1), float(2**53 - 2), float(2**52))
    await queue.push(items, wake=False)
    assert [item.score for item in (await queue.pop({shape: 9})).items] == sorted(item.score for item in items)


@pytest.mark.parametrize("queue", ["Redis"], indirect=True)
async def test_many_who_pop_at_once_share_the_queue(queue: ReadyQueue, shape: str) -> None:
    await queue.push(_items(shape, *(float(n) for n in range(200))), wake=False)
    popped = await asyncio.gather(*(queue.pop({shape: 30}) for _ in range(10)))
    ids = [item.sub_task_id for one in popped for item in one.items]
    assert len(ids) == len(set(ids)) == 200


async def test_no_key_stays_for_ever(servers: tuple[str, str], shape: str) -> None:
    redis = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    queue = ReadyQueue(redis)
    await queue.push(_items(shape, 1.0), wake=False)
    assert await redis.ttl("rayloom:ready:" + shape) > 0
    await queue.pop({shape: 1})
    await queue.pop({})
    assert not await redis.sismember(SHAPES, shape)
    assert not await redis.exists("rayloom:ready:" + shape)
    await redis.aclose()


async def test_wake_ups_are_heard(servers: tuple[str, str], shape: str) -> None:
    redis = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    signals, task = Signals(redis), str(uuid7())
    async with signals.listen(Signals.task_channel(task)) as followed, signals.listen(WAKE) as woken:
        # Subscriptions are made when their answers have come, which are no messages.
        assert await followed.wait(60) is None
        assert await woken.wait(60) is None
        await signals.tell([task])
        assert await followed.wait(60) == ""
        await ReadyQueue(redis).push(_items(shape, 1.0), tasks=[task])
        assert await followed.wait(60) == ""
        assert await woken.wait(60) == "ready"
    await ReadyQueue(redis).pop({shape: 9})
    await redis.aclose()


async def test_a_redis_that_is_away_says_so() -> None:
    redis = make_redis(RedisSettings(url=SecretStr("redis://127.0.0.1:1/0")), name="test")
    with pytest.raises(REDIS_AWAY):
        await ReadyQueue(redis).pop({})
    with pytest.raises(REDIS_AWAY):
        await Signals(redis).wake("ready")
    await redis.aclose()
