"""What is queued: told by Redis, and by PostgreSQL while Redis is away."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import pytest

from rayloom.actors import backlog as module
from rayloom.actors.backlog import KNOWN_SHAPES, Backlog
from rayloom.dag.errors import Transient
from rayloom.dag.token_port import Held
from rayloom.db import leases
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.memory_record import SHAPE, MemoryRecord

NOTHING: Any = None
GPU = SHAPE.replace('"gpus":0.0', '"gpus":1.0')


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> MemoryRecord:
    return MemoryRecord().install(monkeypatch)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def backlog(record: MemoryRecord, queue: MemoryQueue) -> Backlog:
    return Backlog(NOTHING, queue)


def test_a_key_stands_for_its_shape_once(backlog: Backlog) -> None:
    shape = backlog.shape(GPU)
    assert (shape.cpus, shape.gpus) == (1.0, 1.0)
    assert backlog.shape(GPU) is shape


def test_shapes_that_nobody_asks_for_any_more_are_forgotten(backlog: Backlog) -> None:
    first = backlog.shape(GPU)
    for gpus in range(2, KNOWN_SHAPES + 2):
        backlog.shape(SHAPE.replace('"gpus":0.0', f'"gpus":{gpus}.0'))
    assert backlog.shape(GPU) == first
    assert backlog.shape(GPU) is not first


async def test_what_is_popped_is_best_first_and_no_more_than_there_is_room_for(
    backlog: Backlog, record: MemoryRecord
) -> None:
    await backlog.add([*record.add("a", "b", "c"), *record.add("g", shape=GPU)])
    assert [item.sub_task_id for item in await backlog.pop({SHAPE: 2})] == ["a", "b"]
    assert backlog.waiting == {SHAPE: 1, GPU: 1}
    assert [item.sub_task_id for item in await backlog.pop({SHAPE: 9, GPU: 9})] == ["c", "g"]
    assert backlog.waiting == {}


async def test_adding_makes_it_worth_a_look_and_looking_ends_that(backlog: Backlog, record: MemoryRecord) -> None:
    dirty = [backlog.dirty]
    await backlog.pop({})
    dirty.append(backlog.dirty)
    await backlog.add((), tasks=["task"])
    dirty.append(backlog.dirty)
    await backlog.add(record.add("a"))
    dirty.append(backlog.dirty)
    assert dirty == [True, False, False, True]


async def test_postgresql_stands_in_for_redis(backlog: Backlog, record: MemoryRecord, queue: MemoryQueue) -> None:
    queue.away = True
    await backlog.add([*record.add("a", "b", "c"), *record.add("g", shape=GPU)], tasks=["task"])
    assert backlog.redis_away
    assert [item.sub_task_id for item in await backlog.pop({SHAPE: 2})] == ["a", "b"]
    assert backlog.waiting == {SHAPE: 1, GPU: 1}
    # What was looked at and not claimed is seen again: the record decides.
    assert [item.sub_task_id for item in await backlog.pop({SHAPE: 1, GPU: 1})] == ["a", "g"]


def _numbered(first: int, count: int) -> list[str]:
    """Ids as the database has them."""
    return [str(UUID(int=n)) for n in range(first, first + count)]


@pytest.mark.parametrize("room", [{SHAPE: 0}, {SHAPE: 1}, {SHAPE: 7}, {SHAPE: 30}, {}])
async def test_without_redis_no_shape_hides_what_is_queued_behind_it(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch, room: dict[str, int]
) -> None:
    monkeypatch.setattr(module, "PAGE_ROWS", 5)
    queue.away = True
    many, behind = _numbered(1, 24), _numbered(100, 2)
    record.add(*many)
    record.add(*behind, shape=GPU)
    taken = await backlog.pop(room | {GPU: 9})
    assert [item.sub_task_id for item in taken] == many[: room.get(SHAPE, 0)] + behind
    assert backlog.waiting == {SHAPE: max(24 - room.get(SHAPE, 0), 0), GPU: 0}


async def test_without_redis_who_is_held_back_hides_nobody(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE_ROWS", 5)
    queue.away = True
    items = record.add(*_numbered(1, 12))
    for item in items[:11]:
        backlog.hold(item, 5.0)
    assert await backlog.pop({SHAPE: 2}) == (items[11],)


async def test_without_redis_nothing_is_read_of_who_is_held_back(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue
) -> None:
    queue.away = True
    for item in record.add(*(f"s{n}" for n in range(100))):
        if item.sub_task_id == "s0":
            backlog.parked.add(item, Held(sub_task_id="s0", limit="max_concurrent", ask_again_in_s=60))
    assert await backlog.pop({SHAPE: 4}) == ()
    assert record.read == 0


async def test_that_nothing_had_to_be_said_does_not_mean_that_redis_is_back(
    backlog: Backlog, queue: MemoryQueue
) -> None:
    queue.away = True
    await backlog.pop({SHAPE: 1})
    queue.away = False
    await backlog.add([])
    assert backlog.redis_away


async def test_without_redis_counting_takes_a_small_part_of_the_time(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    count = record.queued_counts

    async def slowly(engine: Any) -> dict[str, int]:
        nonlocal now_s
        now_s += 0.1
        return await count(engine)

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(leases, "queued_counts", slowly)
    queue.away = True
    record.add(*_numbered(1, 3))
    for _ in range(50):
        await backlog.pop({SHAPE: 0})
        now_s += 0.1
    assert 2 <= record.counted <= 4
    # A new outage begins with a new count: what was known was known from Redis.
    counted = record.counted
    for queue.away in (False, True):
        await backlog.pop({})
    assert record.counted == counted + 1
    assert backlog.waiting == {SHAPE: 3}


async def test_a_redis_that_stays_away_is_not_asked_again_and_again(backlog: Backlog, queue: MemoryQueue) -> None:
    seen = []
    for away in (True, True, False):
        queue.away = away
        await backlog.pop({})
        seen.append((backlog.dirty, backlog.redis_away))
    # Once what Redis held is to be looked for; after that it is looked for whenever the scheduler looks at all.
    assert seen == [(True, True), (False, True), (False, False)]


async def test_who_is_held_back_is_not_offered_before_its_time(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    first, second = record.add("a", "b")
    backlog.hold(second, 5.0)
    backlog.hold(first, 2.0)
    assert backlog.next_held_s() == 2.0
    await backlog.put_back_held()
    assert await backlog.pop({SHAPE: 9}) == ()
    await backlog.sweep()
    assert await backlog.pop({SHAPE: 9}) == (), "a sweep passes over them"
    queue.away = True
    assert await backlog.pop({SHAPE: 9}) == (), "and so does PostgreSQL"
    queue.away = False
    now_s += 2.5
    await backlog.put_back_held()
    assert await backlog.pop({SHAPE: 9}) == (first,)
    assert backlog.next_held_s() == 2.5
    now_s += 2.5
    await backlog.put_back_held()
    assert await backlog.pop({SHAPE: 9}) == (second,)
    assert backlog.next_held_s() is None


async def test_a_sweep_tells_redis_what_it_lost(backlog: Backlog, record: MemoryRecord) -> None:
    items = record.add("a", "b")
    assert await backlog.pop({SHAPE: 9}) == ()
    await backlog.sweep()
    assert await backlog.pop({SHAPE: 9}) == tuple(items)


async def test_a_sweep_passes_over_what_limits_hold_back(backlog: Backlog, record: MemoryRecord) -> None:
    held, free = record.add("a", "b")
    backlog.parked.add(held, Held(sub_task_id="a", limit="max_concurrent", ask_again_in_s=5))
    await backlog.sweep()
    assert await backlog.pop({SHAPE: 9}) == (free,)
    backlog.parked.hasten(held.user_id)
    assert backlog.next_held_s() == 0
    await backlog.put_back_held()
    assert await backlog.pop({SHAPE: 9}) == (held,)


@pytest.mark.parametrize("heard_by", ["pop", "add", "sweep"])
async def test_a_redis_that_has_come_back_is_filled_from_the_most_urgent_on(
    backlog: Backlog, record: MemoryRecord, queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch, heard_by: str
) -> None:
    monkeypatch.setattr(module, "SWEEP_ROWS", 2)
    items = record.add(*_numbered(1, 6))
    await backlog.sweep()
    assert (await backlog.pop({SHAPE: 9}), backlog.sweep_due) == (tuple(items[:2]), False)
    queue.away = True
    await backlog.pop({})
    queue.away = False
    if heard_by == "pop":
        await backlog.pop({})
    elif heard_by == "add":
        await backlog.add([], tasks=["task"])
    else:
        # The sweep that finds it there went on in the middle.
        await backlog.sweep()
        await backlog.pop({SHAPE: 9})
    assert backlog.sweep_due
    record.away = True
    with pytest.raises(Transient):
        await backlog.sweep()
    assert backlog.sweep_due
    record.away = False
    await backlog.sweep()
    assert (await backlog.pop({SHAPE: 9}), backlog.sweep_due) == (tuple(items[:2]), False)
    await backlog.sweep()
    assert await backlog.pop({SHAPE: 9}) == tuple(items[2:4])
