"""Whoever is held back by limits holds up nobody else."""

from __future__ import annotations

import time

import pytest

from rayloom.dag.outcome import Outcome
from tests.fakes.desk import Desk
from tests.fakes.memory_record import SHAPE

GOOD = Outcome(verdict="succeeded", output="1", worker_id="w")


def _names(user_id: str, count: int) -> list[str]:
    return [f"{user_id}{number:03}" for number in range(count)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its one place."""
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    return now_s


@pytest.mark.parametrize("redis", [True, False])
async def test_one_limited_users_long_queue_hides_nobody(desk: Desk, redis: bool) -> None:
    ann, bob = _names("ann", 400), _names("bob", 20)
    desk.tokens.holds = set(ann)
    await desk.queue.push([*desk.record.add(*ann, user_id="ann"), *desk.record.add(*bob, user_id="bob")])
    desk.queue.away = not redis
    # Ten at a time, as soon as the first are held; and all but nothing is asked about those behind them.
    assert await desk.rest() < 60
    assert desk.running() == bob[:8]
    assert desk.tokens.calls < 10
    for number in range(12):
        await desk.lane.end(bob[number], GOOD)
        await desk.commits.turn()
        # Some of those that are held have come back meanwhile, before all others.
        await desk.backlog.put_back_held()
        assert await desk.rest() < 10
        assert desk.running() == bob[number + 1 : number + 9]
    assert len(desk.record.queued) == 400


async def test_when_the_limit_is_gone_all_start_without_waiting(desk: Desk, clock: list[float]) -> None:
    ann = _names("ann", 100)
    desk.tokens.holds = set(ann)
    await desk.queue.push(desk.record.add(*ann))
    await desk.rest()
    desk.tokens.holds = set()
    clock[0] += 0.1
    for name in ann:
        await desk.backlog.put_back_held()
        await desk.rest()
        await desk.lane.end(name, GOOD)
        await desk.commits.turn()
    assert [ending.sub_task_id for ending in desk.record.endings] == ann


async def test_an_end_of_a_limited_user_lets_the_next_of_it_ask(desk: Desk, clock: list[float]) -> None:
    ann = _names("ann", 30)
    desk.tokens.holds, desk.tokens.wait_s = set(ann[1:]), 5.0
    await desk.queue.push(desk.record.add(*ann))
    await desk.rest()
    for number in range(29):
        await desk.backlog.put_back_held()
        await desk.rest()
        assert desk.running() == [ann[number]]
        desk.tokens.holds.discard(ann[number + 1])
        await desk.lane.end(ann[number], GOOD)
        await desk.commits.turn()
        await desk.rest()


async def test_what_waits_to_call_a_model_holds_up_nothing_else_of_its_user(desk: Desk, clock: list[float]) -> None:
    ann = _names("ann", 20)
    desk.tokens.holds, desk.tokens.wait_s, desk.tokens.alone = {"ann000"}, 9.0, True
    await desk.queue.push(desk.record.add(*ann))
    for number in range(1, 20):
        await desk.backlog.put_back_held()
        await desk.rest()
        assert desk.running()[0] == ann[number]
        await desk.lane.end(ann[number], GOOD)
        await desk.commits.turn()
    assert desk.dispatch.waiting("ann000", "ann", SHAPE).limit == "max_concurrent"


async def test_what_holds_a_queued_subtask_can_be_asked(desk: Desk, clock: list[float]) -> None:
    desk.tokens.holds, desk.tokens.wait_s = {"ann000"}, 2.0
    await desk.queue.push(desk.record.add("ann000", user_id="ann"))
    await desk.turns()
    held = desk.dispatch.waiting("ann000", "ann", SHAPE)
    assert (held.limit, held.limit_in_s, held.handed_over, held.is_held) == ("max_concurrent", 2.0, False, False)
    assert (held.nodes, held.room, held.fits, held.gives_up_in_s) == (1, 4, True, None)
    clock[0] += 0.5
    assert desk.dispatch.waiting("ann000", "ann", SHAPE).limit_in_s == 1.5
    await desk.queue.push(desk.record.add(*_names("bob", 6), user_id="bob"))
    await desk.turns()
    assert desk.dispatch.waiting("bob005", "bob", SHAPE).handed_over
    assert desk.dispatch.waiting("bob005", "bob", SHAPE).room == 0
    assert desk.dispatch.waiting("bob005", "bob", SHAPE).limit is None
    desk.tokens.away = True
    await desk.queue.push(desk.record.add("eve", user_id="eve"))
    await desk.turns()
    assert desk.dispatch.waiting("eve", "eve", SHAPE).is_held


async def test_a_shape_that_no_node_gives_is_about_to_be_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("rayloom.actors.dispatch.monotonic", lambda: now_s[0])
    large = SHAPE.replace('"cpus":1.0', '"cpus":64.0')
    await desk.queue.push(desk.record.add("large", shape=large))
    await desk.turns()
    now_s[0] += 20
    told = desk.dispatch.waiting("large", "ann", large)
    assert (told.fits, told.room, told.gives_up_in_s) == (False, 0, 40.0)
