"""When the next turn begins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayloom.actors import lanes
from rayloom.actors.pace import BUSY, Pace

LONG_S = 3_600.0


async def _begins(pace: Pace, in_flight: int = 0) -> bool:
    """Whether the next turn begins without anything that would have to happen first."""
    turn = asyncio.ensure_future(pace.until_next(in_flight))
    for _ in range(5):
        await asyncio.sleep(0)
    begun = turn.done()
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)
    return begun


async def test_after_a_burst_the_next_turn_waits_for_half_of_it() -> None:
    pace = Pace(burst_s=LONG_S)
    pace.started(10)
    for _ in range(5):
        assert not await _begins(pace)
        pace.ended()
    assert await _begins(pace)
    assert await _begins(pace), "it was waited for once"


async def test_what_ended_before_the_burst_does_not_count() -> None:
    pace = Pace(burst_s=LONG_S)
    for _ in range(100):
        pace.ended()
    pace.started(10)
    assert not await _begins(pace)


async def test_a_burst_of_slow_attempts_is_not_waited_for_long() -> None:
    pace = Pace(burst_s=0)
    pace.started(1_000)
    await asyncio.wait_for(pace.until_next(0), 60)


@pytest.mark.parametrize("count", [0, 1, BUSY])
async def test_a_few_are_not_waited_for(count: int) -> None:
    pace = Pace(burst_s=LONG_S)
    pace.started(10)
    pace.started(count)
    assert await _begins(pace)


async def test_while_much_is_in_flight_turns_keep_apart() -> None:
    pace = Pace(turn_s=LONG_S)
    assert await _begins(pace, BUSY)
    assert not await _begins(pace, BUSY + 1)


async def test_what_is_started_in_one_step_is_watched_together(monkeypatch: Any) -> None:
    monkeypatch.setattr("threading.Thread.start", lambda _self: None)
    ends = lanes._Ends(asyncio.get_running_loop())
    for _ in range(3):
        ends.watch(lanes._Watched(object(), lambda _outcome: None, 0.0))
    assert ends._new.empty(), "not one by one"
    await asyncio.sleep(0)
    assert len(ends._new.get_nowait()) == 3
    assert ends._new.empty()
