"""What is in flight is known by its subtask and its attempt, and is stopped gently, then not."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field, replace

import pytest

from rayloom.actors import flight as module
from rayloom.actors.flight import ABANDON_S, Flight, Flying
from rayloom.actors.order import AttemptOrder
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import ResourceShape
from rayloom.db.attempts import Claimed
from tests.fakes.hand_lane import HandLane

GOOD = Outcome(verdict="succeeded", output="1")
SHAPE = ResourceShape(cpus=1.0, gpus=0.0, memory_bytes=0)


def _claimed(id_: str, attempt: int = 1) -> Claimed:
    return Claimed(
        sub_task_id=id_, task_id="task", user_id="ann", key=f"key of {id_}", tool="t", task_type="TOOL",
        attempt=attempt, retry_count=0, max_retries=3, timeout_s=60.0, input='{"a":1}', referred=("b",), shape="s",
        score=0.0, running=True,
    )  # fmt: skip


@dataclass
class Clock:
    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s

    time = monotonic


@dataclass
class Air:
    """A flight over a lane of the test's hand, and what has ended."""

    lane: HandLane = field(default_factory=HandLane)
    ended: list[tuple[int, Outcome]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.flight = Flight(self.lane, self._end)

    def _end(self, flying: Flying, outcome: Outcome) -> None:
        self.ended.append((flying.claimed.attempt, outcome))


@pytest.fixture
def air() -> Air:
    return Air()


async def test_an_order_says_what_was_claimed(air: Air) -> None:
    air.flight.start(_claimed("a", 3), SHAPE, registry_version=7)
    order = air.lane.held["a"].order
    assert (order.sub_task_id, order.attempt, order.key, order.input, order.referred) == (
        "a", 3, "key of a", '{"a":1}', ("b",),
    )  # fmt: skip
    assert (order.registry_version, order.running, order.ray_name) == (7, True, "t")
    assert air.flight.leases() == [("a", 3)]
    await air.lane.end("a", GOOD)
    assert (len(air.flight), air.ended) == (0, [(3, GOOD)])


async def test_a_late_end_does_not_take_the_next_attempt_down(air: Air) -> None:
    air.flight.start(_claimed("a", 1), SHAPE, registry_version=0)
    first = air.lane.held["a"]
    air.flight.start(_claimed("a", 2), SHAPE, registry_version=0)
    first.done(GOOD)
    assert air.flight.leases() == [("a", 2)]
    assert air.ended == [(1, GOOD)]


async def test_a_stop_is_asked_for_once_and_of_the_right_attempt(air: Air) -> None:
    air.flight.start(_claimed("a", 2), SHAPE, registry_version=0)
    assert not air.flight.stop("a", 1)
    assert not air.flight.stop("b")
    assert air.flight.stop("a", 2)
    assert air.flight.stop("a")
    assert air.lane.held["a"].stops == [False]


async def test_the_stubborn_are_killed_after_their_grace_and_once(air: Air, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    for id_ in ("asked", "later", "never"):
        air.flight.start(_claimed(id_), SHAPE, registry_version=0)
    air.flight.stop("asked")
    clock.now_s += 0.6
    air.flight.stop("later")
    clock.now_s += 0.6
    for _ in range(2):
        air.flight.kill_stubborn(1.0)
    assert {id_: held.stops for id_, held in air.lane.held.items()} == {
        "asked": [False, True], "later": [False], "never": [],
    }  # fmt: skip


async def test_all_can_be_killed_while_they_end(air: Air) -> None:
    for id_ in "abc":
        air.flight.start(_claimed(id_), SHAPE, registry_version=0)
    for flying in air.flight:
        air.flight.kill(flying)
        await air.lane.end(flying.claimed.sub_task_id, GOOD)
    assert len(air.flight) == 0
    assert len(air.ended) == 3


async def test_one_that_can_not_even_be_killed_is_abandoned_and_ends_once(
    air: Air, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    air.flight.start(_claimed("a"), SHAPE, registry_version=0)
    air.flight.stop("a")
    clock.now_s += 2.0
    air.flight.kill_stubborn(1.0)
    clock.now_s += ABANDON_S
    air.flight.kill_stubborn(1.0)
    assert (len(air.flight), air.ended) == (1, [])
    clock.now_s += 0.1
    air.flight.kill_stubborn(1.0)
    ((_, outcome),) = air.ended
    assert (len(air.flight), outcome.verdict) == (0, "cancelled")
    assert outcome.error is not None
    assert outcome.ray_task_id == "task of a"
    assert (outcome.error.code, outcome.started_at, outcome.finished_at) == ("WORKER_DIED", 100.0, clock.now_s)
    await air.lane.end("a", GOOD)
    assert len(air.ended) == 1


async def test_what_has_ended_is_not_kept_for_the_collector_of_garbage(air: Air) -> None:
    air.flight.start(replace(_claimed("a"), input="x" * 100_000), SHAPE, registry_version=1)
    (flying,) = air.flight
    kept = weakref.ref(flying)
    assert flying.claimed.input == ""
    held = [cell.cell_contents for cell in flying.abandon.__closure__ or ()]
    assert held
    assert not any(isinstance(each, AttemptOrder) for each in held), "an order has the whole input"
    del flying, held
    gc.disable()
    try:
        await air.lane.end("a", GOOD)
        assert kept() is None
    finally:
        gc.enable()


async def test_several_are_stopped_at_once_and_those_that_do_not_hear_it_are_killed(air: Air) -> None:
    air.flight.start(_claimed("a"), SHAPE, registry_version=1)
    air.flight.start(_claimed("b"), SHAPE, registry_version=1)
    air.flight.start(_claimed("other"), SHAPE, registry_version=1)
    air.flight.stop_all([("a", 1), ("b", 1), ("b", 2), ("gone", 1)], grace_s=0.0)
    assert air.lane.held["a"].stops == air.lane.held["b"].stops == [False]
    await air.lane.end("a", GOOD)
    b, killed = air.lane.held["b"], asyncio.Event()
    stop = b.stop

    def heard(*, force: bool) -> None:
        stop(force=force)
        killed.set()

    b.stop = heard  # type: ignore[method-assign]
    async with asyncio.timeout(60):
        await killed.wait()
    assert (air.lane.held["b"].stops, air.lane.held["other"].stops) == ([False, True], [])
