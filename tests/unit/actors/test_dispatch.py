"""Starting attempts: as many as there is room for, within limits, and nothing is lost whatever is away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from rayloom.actors import dispatch as module
from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.dispatch import GIVE_UP_S, Dispatch
from rayloom.actors.flight import Flight, Flying
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import NodeShape
from tests.fakes.hand_lane import HandLane
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.memory_record import SHAPE, MemoryRecord
from tests.fakes.scripted_tokens import ScriptedTokens

NOTHING: Any = None
"""In place of connections that the fakes don't use."""


@dataclass
class Desk:
    """A dispatch with everything around it, on a node of four CPUs."""

    record: MemoryRecord
    queue: MemoryQueue
    tokens: ScriptedTokens
    lane: HandLane
    backlog: Backlog
    commits: Commits
    flight: Flight
    dispatch: Dispatch

    def running(self) -> list[str]:
        return sorted(self.lane.held)

    async def turns(self, count: int = 3) -> None:
        """Some turns: the first finds out which shapes there are."""
        for _ in range(count):
            await self.dispatch.turn()
            await asyncio.sleep(0)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    record, queue, tokens, lane = MemoryRecord().install(monkeypatch), MemoryQueue(), ScriptedTokens(), HandLane()
    settings = EngineSettings(batch_max=10)
    backlog = Backlog(NOTHING, queue)
    commits = Commits(NOTHING, backlog, settings, jitter=lambda: 0.0)

    def ended(flying: Flying, outcome: Outcome) -> None:
        dispatch.window.ended(flying.shape, flying.claimed.tool, lasted_s=outcome.finished_at - outcome.started_at)
        commits.add(flying, outcome)

    flight = Flight(lane, ended)
    dispatch = Dispatch(NOTHING, backlog, commits, flight, tokens, settings)
    dispatch.incarnation = UUID(int=1)
    dispatch.window.nodes = dispatch.window.types = (NodeShape(total={"CPU": 4.0}, labels={}, count_max=1),)
    return Desk(record, queue, tokens, lane, backlog, commits, flight, dispatch)


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
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", ray_task_id="r"))
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
    await desk.lane.end("a", Outcome(verdict="succeeded", output="1", tokens_used=7, ray_task_id="r"))
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
    assert sorted(one.sub_task_id for one in desk.tokens.finished) == ["a", "b", "c", "d"]


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
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", ray_task_id="r"))
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


async def test_after_quick_ends_slow_ones_are_not_handed_over_beyond_a_nodes_worth(desk: Desk) -> None:
    desk.dispatch.window.types = ()
    shape = desk.backlog.shape(SHAPE)
    for _ in range(6):
        desk.dispatch.window.take(shape)
        desk.dispatch.window.ended(shape, "another.tool", lasted_s=0.0)
    await desk.queue.push(desk.record.add(*(f"s{n:02}" for n in range(20))))
    await desk.turns(1)
    await desk.dispatch.turn()
    assert desk.running() == [f"s{n:02}" for n in range(8)]
    await desk.commits.turn()
    await desk.turns()
    # What was claimed too early is free again, and counted against nobody.
    assert desk.record.queued.keys() == {f"s{n:02}" for n in range(8, 20)}
    assert {one.sub_task_id for one in desk.tokens.finished} == {"s08", "s09"}
    await desk.lane.end("s00", Outcome(verdict="succeeded", output="1", ray_task_id="r"))
    await desk.commits.turn()
    await desk.turns()
    assert "s08" in desk.running()


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
