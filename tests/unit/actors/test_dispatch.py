"""Starting attempts: as many as there is room for, within limits, and nothing is lost whatever is away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayloom.actors import dispatch as module
from rayloom.actors import flight
from rayloom.actors.dispatch import GIVE_UP_S
from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import NodeShape
from rayloom.dag.window import TRIAL
from rayloom.db import attempts, leases
from rayloom.db.queue import Queued
from tests.fakes.desk import Desk
from tests.fakes.memory_record import SHAPE


async def test_what_has_room_runs_and_one_node_more_is_handed_over(desk: Desk) -> None:
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(20))))
    await desk.turns()
    assert [(order.sub_task_id, order.running) for order in desk.lane.started] == [
        (f"s{n:02}", n < 4) for n in range(8)
    ]
    assert len((await desk.queue.pop({SHAPE: 100})).items) == 12
    assert len(desk.flight) == 8


async def test_an_end_makes_room_for_the_next(desk: Desk) -> None:
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(20))))
    await desk.turns()
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", worker_id="w"))
    await desk.commits.turn()
    await desk.turns()
    assert len(desk.flight) == 8
    assert desk.lane.started[-1].sub_task_id == "s08"
    assert [one.sub_task_id for one in desk.tokens.finished] == ["s00"]


async def test_no_incarnation_no_start(desk: Desk) -> None:
    desk.dispatch.incarnation = None
    await desk.queue.push(desk.record.add("a"))
    await desk.turns()
    assert desk.running() == []
    assert desk.record.queued.keys() == {"a"}


async def test_who_is_held_by_a_limit_is_asked_for_again(desk: Desk) -> None:
    desk.tokens.holds = {"a", "b", "c", "d", "e", "f", "g"}
    await desk.queue.push(desk.record.add("a", "b", "c", "d", "e", "f", "g", "h"))
    await desk.turns()
    assert desk.running() == ["h"]
    desk.tokens.holds = {"b"}
    await desk.backlog.put_back_held()
    await desk.turns()
    # The window was given back for those that were held: there is room for all the others.
    assert desk.running() == ["a", "c", "d", "e", "f", "g", "h"]
    assert sum(desk.dispatch.window.running.values()) + sum(desk.dispatch.window.demand.values()) == 7
    assert desk.backlog.next_held_s() == 0


async def test_without_the_token_controller_nothing_starts_and_nothing_is_lost(desk: Desk) -> None:
    desk.tokens.away = True
    await desk.queue.push(desk.record.add("a", "b"))
    await desk.turns()
    assert desk.running() == []
    assert desk.record.queued.keys() == {"a", "b"}
    held_s = desk.backlog.next_held_s()
    assert held_s is not None
    assert held_s > 0
    assert desk.dispatch.window.running == {}


async def test_ends_are_kept_for_a_token_controller_that_is_away(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a"))
    await desk.turns()
    await desk.lane.end("a", Outcome(verdict="succeeded", output="1", tokens_used=7, worker_id="w"))
    await desk.commits.turn()
    desk.tokens.away = True
    await desk.turns()
    assert desk.tokens.finished == []
    desk.tokens.away = False
    await desk.turns()
    assert [(one.sub_task_id, one.tokens) for one in desk.tokens.finished] == [("a", 7)]


async def test_a_lost_claim_gives_its_place_back(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a", "b", "c", "d", "e"))
    for id_ in "abcd":
        del desk.record.queued[id_]
    await desk.turns()
    assert desk.running() == ["e"]
    assert sum(desk.dispatch.window.running.values()) + sum(desk.dispatch.window.demand.values()) == 1
    # The controller hears that they don't run after all.
    assert sorted((one.sub_task_id, one.started) for one in desk.tokens.finished) == [(id_, False) for id_ in "abcd"]


async def test_a_database_that_is_away_loses_nothing(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a", "b"))
    await desk.dispatch.turn()
    desk.record.away = True
    with pytest.raises(Transient):
        await desk.turns()
    assert desk.dispatch.window.running == {}
    assert desk.running() == []
    desk.record.away = False
    # Their time is not up yet: it is as if it were.
    desk.backlog._held = [(0.0, id_, item) for _, id_, item in desk.backlog._held]
    await desk.backlog.put_back_held()
    await desk.turns()
    assert desk.running() == ["a", "b"]
    assert sorted(one.sub_task_id for one in desk.tokens.finished) == ["a", "b"]


async def test_an_input_that_the_database_cannot_give_fails_its_own_attempt(desk: Desk) -> None:
    desk.record.unreadable = {"b"}
    await desk.queue.push(desk.record.add("a", "b", "c"))
    await desk.turns()
    assert desk.running() == ["a", "c"]
    assert sum(desk.dispatch.window.running.values()) == 2
    await desk.commits.turn()
    (ending,) = desk.record.endings
    assert ending.outcome.error is not None
    assert (ending.sub_task_id, ending.retry_in_s, ending.outcome.error.error_class) == ("b", None, "user")
    assert (ending.outcome.error.code, "it is too long" in ending.outcome.error.message) == ("INPUT_UNREADABLE", True)


async def test_what_was_too_much_for_one_claim_is_in_the_next(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "CLAIM_CHARS", 1_000)
    monkeypatch.setattr(flight, "LARGE_CHARS", 100)
    desk.record.inputs = dict.fromkeys("abcd", '{"value":"' + "x" * 600 + '"}')
    await desk.queue.push(desk.record.add("a", "b", "c", "d"))
    await desk.turns(2)
    assert desk.running() == ["a", "b"]
    await desk.turns(2)
    assert desk.running() == ["a", "b", "c", "d"]
    # They are with the lane, and not kept here.
    assert {flying.claimed.input for flying in desk.flight} == {""}


async def test_an_echo_of_what_is_in_flight_is_ignored(desk: Desk) -> None:
    items = desk.record.add("a")
    await desk.queue.push(items)
    await desk.turns()
    calls = desk.tokens.calls
    await desk.queue.push(items)
    await desk.turns()
    assert len(desk.lane.started) == 1
    assert desk.tokens.calls == calls
    assert (await desk.queue.pop({SHAPE: 10})).items == ()


async def test_without_redis_the_database_is_asked(desk: Desk) -> None:
    desk.record.add(*(f"s{n:02}" for n in range(20)))
    desk.queue.away = True
    await desk.turns(4)
    assert desk.running() == [f"s{n:02}" for n in range(8)]
    away = desk.backlog.redis_away
    desk.queue.away = False
    await desk.backlog.sweep()
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", worker_id="w"))
    await desk.turns()
    assert (away, desk.backlog.redis_away) == (True, False)
    assert desk.running() == [f"s{n:02}" for n in range(1, 9)]


async def test_what_the_lane_will_not_start_fails_alone(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a", "b"))
    desk.lane.refuses = ValueError("no such label")
    await desk.turns()
    await desk.turns()
    await desk.commits.turn()
    assert {one.sub_task_id: one.outcome.verdict for one in desk.record.endings} == {"a": "failed", "b": "failed"}
    assert all(one.retry_in_s is None for one in desk.record.endings)
    assert desk.dispatch.window.running == {}
    assert len(desk.flight) == 0


async def test_a_lane_that_is_away_loses_attempts_that_are_tried_again(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a"))
    desk.lane.refuses = ConnectionError("Ray is away")
    await desk.turns()
    await desk.commits.turn()
    (ending,) = desk.record.endings
    assert (ending.outcome.verdict, ending.spends) == ("lost", False)
    assert ending.retry_in_s is not None


async def _before_too_much_is_claimed(desk: Desk) -> None:
    """Another task has earned a lead: the next turn claims two more than a node's worth of what has earned none."""
    desk.dispatch.window.types = ()
    shape = desk.backlog.shape(SHAPE)
    for _ in range(TRIAL + 6):
        desk.dispatch.window.take(shape)
        desk.dispatch.window.ended(shape, ("another task", "t"), lasted_s=0.0)
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(20))))
    await desk.turns(1)


async def test_after_quick_ends_slow_ones_are_not_handed_over_beyond_a_nodes_worth(desk: Desk) -> None:
    await _before_too_much_is_claimed(desk)
    await desk.dispatch.turn()
    assert desk.running() == [f"s{n:02}" for n in range(8)]
    assert desk.flight.unclaimed == {("s08", 1), ("s09", 1)}
    await desk.turns()
    # What was claimed too early is free again, counted against nobody, and its attempt is still the first.
    assert desk.record.queued.keys() == {f"s{n:02}" for n in range(8, 20)}
    assert {(one.sub_task_id, one.started) for one in desk.tokens.finished} == {("s08", False), ("s09", False)}
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", worker_id="w"))
    await desk.commits.turn()
    await desk.turns()
    assert "s08" in desk.running()
    assert {order.attempt for order in desk.lane.started} == {1}


async def test_a_database_that_is_away_when_claims_go_back_keeps_nobody_from_starting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _before_too_much_is_claimed(desk)

    async def away(*_: Any, **__: Any) -> tuple[Queued, ...]:
        raise Transient("DATABASE_UNAVAILABLE", "the database did not answer")

    monkeypatch.setattr(leases, "unclaim", away)
    with pytest.raises(Transient):
        await desk.dispatch.turn()
    await desk.turns()
    assert desk.running() == [f"s{n:02}" for n in range(8)]
    assert sum(desk.dispatch.window.running.values()) + sum(desk.dispatch.window.demand.values()) == 8
    assert {(one.sub_task_id, one.started) for one in desk.tokens.finished} == {("s08", False), ("s09", False)}
    assert desk.backlog.is_held("s08")
    assert desk.backlog.is_held("s09")


async def test_what_no_node_can_run_fails_after_some_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    huge = SHAPE.replace('"cpus":1.0', '"cpus":99.0')
    await desk.queue.push(desk.record.add("a", "b", shape=huge))
    await desk.turns()
    now += GIVE_UP_S
    await desk.turns()
    assert len(desk.commits) == 0
    now += 1.0
    await desk.turns()
    await desk.commits.turn()
    assert {ending.sub_task_id for ending in desk.record.endings} == {"a", "b"}
    (error,) = {ending.outcome.error.code for ending in desk.record.endings if ending.outcome.error}
    assert error == "UNSCHEDULABLE"
    assert not any(ending.retry_in_s for ending in desk.record.endings)


async def test_what_ray_holds_and_no_node_can_run_any_more_fails_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(8))))
    await desk.turns()
    assert len(desk.lane.held) == 8
    # The only node is gone, another kind has come. Nothing is queued any more, and so there are no turns.
    desk.dispatch.window.nodes = desk.dispatch.window.types = (NodeShape(total={"CPU": 0.5}, labels={}, count_max=1),)
    desk.dispatch.note_hopeless()
    now += GIVE_UP_S
    desk.dispatch.note_hopeless()
    assert not any(held.stops for held in desk.lane.held.values())
    now += 1.0
    for _ in range(2):
        desk.dispatch.note_hopeless()
    assert [held.stops for held in desk.lane.held.values()] == [[False]] * 8
    stopped = ErrorInfo(code="CANCELLED", error_class="refused", message="stopped", retryable=False)
    for name in desk.running():
        # One ran after all: what it says of itself is true.
        worker = "w" if name == "s00" else ""
        await desk.lane.end(name, Outcome(verdict="cancelled", error=stopped, worker_id=worker))
    await desk.commits.turn()
    codes = [ending.outcome.error.code for ending in desk.record.endings if ending.outcome.error]
    assert codes == ["CANCELLED", *["UNSCHEDULABLE"] * 7]
    assert [ending.retry_in_s is None for ending in desk.record.endings] == [False, *[True] * 7]


async def test_what_grows_up_in_time_is_not_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    huge = SHAPE.replace('"cpus":1.0', '"cpus":99.0')
    await desk.queue.push(desk.record.add("a", shape=huge))
    await desk.turns()
    desk.dispatch.window.nodes = (NodeShape(total={"CPU": 99.0}, labels={}, count_max=1),)
    await desk.turns()
    now += GIVE_UP_S + 1
    await desk.turns()
    assert desk.running() == ["a"]


@pytest.mark.parametrize("failure", [RuntimeError("a bug"), asyncio.CancelledError()])
async def test_whatever_the_token_controller_raises_no_room_is_lost(desk: Desk, failure: BaseException) -> None:
    await desk.queue.push(desk.record.add("a", "b"))
    desk.tokens.breaks = failure
    with pytest.raises(type(failure)):
        await desk.turns()
    assert (desk.dispatch.window.running, desk.dispatch.window.demand) == ({}, {})
    desk.tokens.breaks = None
    await desk.backlog.put_back_held()
    await desk.turns()
    assert desk.backlog.next_held_s() is not None or desk.running() == ["a", "b"]


async def test_a_life_that_ends_while_the_controller_is_asked_claims_nothing(desk: Desk) -> None:
    await desk.queue.push(desk.record.add("a"))
    desk.tokens.on_ask = lambda: setattr(desk.dispatch, "incarnation", None)
    await desk.turns()
    assert desk.record.queued.keys() == {"a"}
    assert desk.dispatch.window.running == {}


async def test_one_statement_claims_a_bounded_number_over_all_shapes(desk: Desk) -> None:
    shapes = [SHAPE.replace('"cpus":1.0', f'"cpus":0.{number}1') for number in range(1, 9)]
    for number, shape in enumerate(shapes):
        await desk.queue.push(desk.record.add(*(f"{number}-{n}" for n in range(5)), shape=shape))
    await desk.dispatch.turn()
    await desk.dispatch.turn()
    assert 0 < len(desk.lane.started) <= 10


async def test_stale_ids_do_not_stop_what_is_queued_behind_them(desk: Desk) -> None:
    await desk.queue.push(desk.record.add(*(f"stale{n:03}" for n in range(100)), "good"))
    for n in range(100):
        del desk.record.queued[f"stale{n:03}"]
    assert await desk.rest() < 30
    assert desk.running() == ["good"]


async def test_echoes_of_what_is_in_flight_do_not_stop_what_is_queued_behind_them(desk: Desk) -> None:
    items = desk.record.add(*(f"a{n}" for n in range(4)))
    desk.dispatch.window.types = ()
    await desk.queue.push(items)
    await desk.rest()
    assert len(desk.running()) == 4
    await desk.queue.push([*items, *desk.record.add("b")])
    # Nothing else is told: the echoes alone make it look again.
    desk.backlog.dirty = False
    await desk.rest()
    assert "b" in desk.running()


async def test_a_life_that_was_ended_does_not_empty_the_queue_for_the_others(desk: Desk) -> None:
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(50))))
    desk.record.over = True
    await desk.rest()
    assert desk.running() == []
    assert len((await desk.queue.pop({SHAPE: 100})).items) >= 40


async def test_a_wake_while_items_are_put_back_is_heard(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than a batch, of two shapes: what is over goes back.
    other = SHAPE.replace('"cpus":1.0', '"cpus":0.5')
    await desk.queue.push([*desk.record.add(*"abcdefgh"), *desk.record.add(*"ijklmnop", shape=other)])
    await desk.dispatch.turn()
    push = desk.queue.push

    async def woken(*args: Any, **more: Any) -> None:
        desk.backlog.dirty = True
        await push(*args, **more)

    monkeypatch.setattr(desk.queue, "push", woken)
    await desk.dispatch.turn()
    assert desk.backlog.dirty


async def test_a_database_that_is_away_as_shapes_are_given_up_loses_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    huge = SHAPE.replace('"cpus":1.0', '"cpus":99.0')
    await desk.queue.push(desk.record.add("a", shape=huge))
    await desk.turns()
    now += GIVE_UP_S + 1
    await desk.queue.push(desk.record.add("b"))
    desk.backlog.waiting[SHAPE] = 1
    desk.record.away = True
    with pytest.raises(Transient):
        await desk.turns()
    assert (desk.dispatch.window.running, desk.dispatch.window.demand) == ({}, {})
    desk.record.away = False
    desk.backlog._held = [(0.0, id_, item) for _, id_, item in desk.backlog._held]
    await desk.backlog.put_back_held()
    await desk.turns()
    await desk.commits.turn()
    assert desk.running() == ["b"]
    assert [ending.sub_task_id for ending in desk.record.endings] == ["a"]
