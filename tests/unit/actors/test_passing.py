"""What an open breaker does to the queue: its tool's subtasks wait unclaimed, one at a time looks, others go on."""

from __future__ import annotations

import asyncio
import time

import pytest

from rayloom.dag.breaker import BREAKER_OPEN, BreakerView, Call
from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.tool_scope import ToolScope
from tests.fakes.desk import Desk
from tests.fakes.tools import tool

FAR = 1e12
GOOD = Outcome(verdict="succeeded", output="1", worker_id="w", called=True)
BUSY = ErrorInfo(code="HTTP_503", error_class="transient", message="x", retryable=True)
BAD = Outcome(verdict="failed", error=BUSY, worker_id="w", called=True)


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk.set_up(monkeypatch)
    desk.record.tools = {f"w{n}": "web" for n in range(1_000)}
    return desk


def _news(desk: Desk, *, tools: tuple[RegisteredTool, ...] = (tool("web"), tool("t")), **breakers: BreakerView) -> None:
    version = desk.passing.tools.version + 1
    desk.passing.news(ToolSnapshot(version=version, tools={each.name: each for each in tools}, breakers=breakers))


def _open(retry_at: float | None = FAR) -> BreakerView:
    return BreakerView(state="open", retry_at=retry_at)


async def _queue(desk: Desk, *ids: str) -> None:
    await desk.backlog.add(desk.record.add(*ids))


async def test_a_thousand_that_wait_are_claimed_not_once_and_the_desk_rests(desk: Desk) -> None:
    _news(desk, web=_open())
    await _queue(desk, *(f"w{n}" for n in range(1_000)), "other")
    await desk.rest()
    assert desk.running() == ["other"]
    assert len(desk.backlog.halted) == 1_000
    assert max(desk.record.attempt[f"w{n}"] for n in range(1_000)) == 0
    assert desk.registry.asked == []
    # Neither the timer nor the sweep brings them back.
    await desk.backlog.put_back_held()
    await desk.backlog.sweep()
    await desk.rest()
    assert desk.running() == ["other"]


async def test_when_it_closes_all_go_on(desk: Desk) -> None:
    _news(desk, web=_open())
    await _queue(desk, "w0", "w1", "w2")
    await desk.rest()
    _news(desk)
    assert desk.backlog.next_held_s() == 0
    await desk.backlog.put_back_held()
    await desk.rest()
    assert desk.running() == ["w0", "w1", "w2"]
    assert len(desk.backlog.halted) == 0


async def test_once_its_time_has_come_one_is_let_through(desk: Desk) -> None:
    desk.registry.lets = 1
    await _queue(desk, *(f"w{n}" for n in range(20)))
    _news(desk, web=_open(1.0))
    await desk.rest()
    assert desk.running() == ["w0"]
    _news(desk, web=BreakerView(state="half_open", retry_at=FAR))
    assert desk.backlog.next_held_s() != 0
    await desk.rest()
    assert desk.running() == ["w0"]
    await desk.lane.end("w0", GOOD)
    await desk.commits.turn()
    told = desk.passing.take()
    assert told == [Call(key="web", by="w0", succeeded=True)]


async def test_without_redis_the_probe_is_found_too(desk: Desk) -> None:
    _news(desk, web=_open())
    await _queue(desk, "w0", "w1", "other")
    desk.queue.away = True
    await desk.rest()
    assert desk.running() == ["other"]
    desk.registry.lets = 1
    _news(desk, web=_open(1.0))
    await desk.backlog.put_back_held()
    await desk.rest()
    assert len(desk.running()) == 2


async def test_a_probe_that_does_not_start_makes_room_for_the_next(desk: Desk) -> None:
    _news(desk, web=_open(1.0))
    desk.registry.lets = 1
    await _queue(desk, "w0")
    desk.record.over = True
    await desk.turns()
    assert desk.running() == []
    assert desk.passing.take() == [Call(key="web", by="w0", succeeded=None)]


async def test_a_probe_is_one_until_its_end_is_written_down(desk: Desk) -> None:
    _news(desk, web=_open(1.0))
    desk.registry.lets = 1
    await _queue(desk, "w0")
    await desk.rest()
    await desk.turns(1)
    assert desk.passing.take() == []
    await desk.lane.end("w0", GOOD)
    await desk.turns(1)
    assert desk.passing.take() == []
    await desk.commits.turn()
    assert desk.passing.take() == [Call(key="web", by="w0", succeeded=True)]


async def test_while_the_registry_is_away_nobody_passes(desk: Desk) -> None:
    _news(desk, web=_open(1.0))
    desk.registry.away = True
    await _queue(desk, "w0", "other")
    await desk.rest()
    assert desk.running() == ["other"]
    assert desk.registry.tries == 1
    await desk.backlog.put_back_held()
    await desk.rest()
    # Not at once again: neither is it let out, nor is the registry asked for another one.
    assert (desk.backlog.next_held_s() or 0) > 0.5
    await _queue(desk, "w1")
    await desk.rest()
    assert (desk.running(), desk.registry.tries) == (["other"], 1)


async def test_the_few_that_wait_for_a_probe_which_is_refused_are_not_let_out_at_once_again(desk: Desk) -> None:
    _news(desk, web=_open(1.0))
    await _queue(desk, "w0", "w1")
    await desk.rest()
    for _ in range(3):
        await desk.backlog.put_back_held()
        await desk.rest()
        assert (desk.backlog.next_held_s() or 0) > 0.5
    assert desk.running() == []


async def test_a_database_that_is_away_loses_nothing(desk: Desk) -> None:
    _news(desk, web=_open())
    await _queue(desk, "w0", "other")
    desk.record.away = True
    with pytest.raises(Exception, match="did not answer"):
        await desk.turns()
    desk.record.away = False
    assert desk.backlog.next_held_s() is not None


async def test_the_alternative_is_called_in_its_place(desk: Desk) -> None:
    tools = (tool("web", alternative="mirror"), tool("mirror"), tool("t"))
    _news(desk, tools=tools, web=_open())
    await _queue(desk, "w0", "w1")
    await desk.rest()
    orders = [(order.tool, order.calls) for order in desk.lane.started]
    assert orders == [("web", "mirror")] * 2
    assert desk.lane.started[0].breaker_wait_s > 0
    await desk.lane.end("w0", BAD)
    await desk.commits.turn()
    assert desk.passing.take() == [Call(key="mirror", by="w0", succeeded=False)]
    # Its own breaker is open, too: then all wait.
    _news(desk, tools=tools, web=_open(), mirror=_open())
    await _queue(desk, "w2")
    await desk.rest()
    assert desk.running() == ["w1"]


async def test_an_alternative_that_can_not_take_the_input_is_waited_for_and_spends_nothing(desk: Desk) -> None:
    tools = (tool("web", alternative="mirror"), tool("mirror"), tool("t"))
    _news(desk, tools=tools, web=_open(time.time() + 50))
    await _queue(desk, "w0")
    await desk.rest()
    error = ErrorInfo(code=BREAKER_OPEN, error_class="transient", message="x", retryable=True, retry_after_s=50)
    await desk.lane.end("w0", Outcome(verdict="failed", error=error, worker_id="w"))
    await desk.commits.turn()
    (ending,) = desk.record.endings
    assert (ending.retry_in_s, ending.spends) == (51, False)
    assert desk.passing.take() == []


async def test_calls_of_tools_without_a_breaker_are_not_told(desk: Desk) -> None:
    _news(desk, tools=(tool("web", breaker_default=False), tool("t")))
    await _queue(desk, "w0", "other")
    await desk.rest()
    for id_ in ("w0", "other"):
        await desk.lane.end(id_, BAD)
    await desk.commits.turn()
    assert desk.passing.take() == [Call(key="t", by="other", succeeded=False)]


TOOLS = (tool("web"), tool("plan_b"), tool("t"))


async def test_a_fallback_is_turned_to_at_once_and_spends_nothing(desk: Desk) -> None:
    desk.record.fallbacks = {"w0": "plan_b"}
    _news(desk, tools=TOOLS, web=_open())
    await _queue(desk, "w0", "w1")
    await desk.turns()
    await desk.commits.turn()
    (ending,) = desk.record.endings
    assert (ending.sub_task_id, ending.use_fallback, ending.spends) == ("w0", True, False)
    error = ending.outcome.error
    assert error is not None
    assert (error.code, error.retryable) == (BREAKER_OPEN, True)
    assert error.message == "the breaker of web is open: the subtask turns to its fallback plan_b at once"
    await desk.rest()
    assert [(order.sub_task_id, order.tool, order.attempt) for order in desk.lane.started] == [("w0", "plan_b", 2)]
    # What was never called is no request, and says nothing of the tool.
    assert desk.tokens.finished[0].started is False
    assert desk.passing.take() == []
    await desk.lane.end("w0", BAD)
    await desk.commits.turn()
    assert (desk.record.endings[-1].use_fallback, desk.record.endings[-1].spends) == (False, True)
    assert desk.passing.take() == [Call(key="plan_b", by="w0", succeeded=False)]
    assert desk.dispatch.window.running == {}


async def test_a_fallback_whose_own_breaker_is_open_is_waited_for(desk: Desk) -> None:
    desk.record.fallbacks = {"w0": "plan_b", "w1": "plan_b", "w2": "gone"}
    _news(desk, tools=TOOLS, web=_open(), plan_b=_open())
    await _queue(desk, "w0", "w1", "w2", "w3")
    await desk.rest()
    assert (desk.running(), len(desk.backlog.halted), desk.record.attempt["w0"]) == ([], 4, 0)
    # Until it is closed, though that of the tool stays open. Who has no such fallback waits on.
    _news(desk, tools=TOOLS, web=_open(None))
    assert desk.backlog.next_held_s() == 0
    await desk.backlog.put_back_held()
    await desk.turns()
    await desk.commits.turn()
    await desk.rest()
    assert [order.tool for order in desk.lane.started] == ["plan_b", "plan_b"]
    assert len(desk.backlog.halted) == 2
    assert desk.backlog.next_held_s() is None


async def test_who_is_on_the_fallback_waits_for_its_breaker(desk: Desk) -> None:
    desk.record.fallbacks = {"w0": "plan_b"}
    _news(desk, tools=TOOLS, web=_open())
    await _queue(desk, "w0")
    await desk.turns()
    _news(desk, tools=TOOLS, web=_open(), plan_b=_open())
    await desk.commits.turn()
    await desk.rest()
    assert (desk.running(), len(desk.backlog.halted), desk.record.attempt["w0"]) == ([], 1, 1)
    _news(desk, tools=TOOLS, web=_open())
    await desk.backlog.put_back_held()
    await desk.rest()
    assert [order.tool for order in desk.lane.started] == ["plan_b"]


async def test_one_looks_although_all_have_fallbacks(desk: Desk) -> None:
    desk.registry.lets = 1
    desk.record.fallbacks = {"w0": "plan_b", "w1": "plan_b", "w2": "plan_b"}
    _news(desk, tools=TOOLS, web=_open(1.0))
    await _queue(desk, "w0", "w1", "w2")
    await desk.turns()
    await desk.commits.turn()
    await desk.rest()
    assert [order.tool for order in desk.lane.started] == ["web", "plan_b", "plan_b"]
    assert desk.registry.asked == [("web", "w0")]


async def test_without_redis_one_with_a_fallback_is_found_behind_those_that_wait(desk: Desk) -> None:
    _news(desk, tools=TOOLS, web=_open())
    await _queue(desk, *(f"w{n}" for n in range(30)))
    await desk.rest()
    desk.queue.away = True
    desk.record.fallbacks = {"w30": "plan_b"}
    await _queue(desk, "w30")
    await desk.turns()
    await desk.commits.turn()
    await desk.rest()
    assert [order.tool for order in desk.lane.started] == ["plan_b"]
    assert len(desk.backlog.halted) == 30


async def test_an_alternative_that_comes_later_lets_out_what_waits(desk: Desk) -> None:
    _news(desk, tools=TOOLS, web=_open(None))
    await _queue(desk, "w0", "w1")
    await desk.rest()
    assert (desk.running(), desk.backlog.next_held_s()) == ([], None)
    with_it = (tool("web", alternative="plan_b"), tool("plan_b"), tool("t"))
    _news(desk, tools=with_it, web=_open(None), plan_b=_open(None))
    assert desk.backlog.next_held_s() is None
    _news(desk, tools=with_it, web=_open(None))
    assert desk.backlog.next_held_s() == 0
    await desk.backlog.put_back_held()
    await desk.rest()
    assert [(order.tool, order.calls) for order in desk.lane.started] == [("web", "plan_b")] * 2
    assert (len(desk.backlog.halted), desk.backlog.next_held_s()) == (0, None)


async def test_news_that_come_while_the_registry_is_asked_are_not_missed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def probe(_key: str, _by: str) -> bool:
        _news(desk, tools=(tool("web", alternative="plan_b"), tool("plan_b")), web=_open(None))
        return False

    monkeypatch.setattr(desk.registry, "probe", probe)
    _news(desk, tools=TOOLS, web=_open(1.0))
    await _queue(desk, "w0", "w1")
    await desk.rest()
    assert desk.running() == []
    assert desk.backlog.next_held_s() == 0
    await desk.backlog.put_back_held()
    await desk.rest()
    assert [order.calls for order in desk.lane.started] == ["plan_b", "plan_b"]


async def test_what_its_task_denies_does_not_stand_in(desk: Desk) -> None:
    tools = (tool("web", alternative="plan_b"), tool("plan_b", alternative="plan_c"), tool("plan_c"), tool("t"))
    desk.record.scopes = {
        "w0": ToolScope(deny=("plan_*",)),
        "w1": ToolScope(deny=("plan_b",)),
        "w2": ToolScope(allow=("web",)),
    }
    await _queue(desk, "w0", "w1", "w2", "w3", "other")
    _news(desk, tools=tools, web=_open(None))
    await desk.rest()
    calls = {order.sub_task_id: order.calls for order in desk.lane.started}
    assert calls == {"w1": "plan_c", "w3": "plan_b", "other": "t"}
    # They wait, and are not looked at again and again.
    assert (len(desk.backlog.halted), desk.backlog.next_held_s()) == (2, None)
    # Only they were asked about for whom it matters.
    assert desk.record.asked_scopes == ["w0", "w1", "w2", "w3"]
    _news(desk, tools=tools)
    await desk.backlog.put_back_held()
    await desk.rest()
    assert [order.calls for order in desk.lane.started][3:] == ["web", "web"]


async def test_who_asks_for_a_version_is_answered_once_it_has_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    _news(desk)
    now = desk.passing.tools.version
    assert await desk.passing.known(now)
    asked = asyncio.create_task(desk.passing.known(now + 2))
    _news(desk)
    await asyncio.sleep(0)
    assert not asked.done()
    _news(desk)
    assert await asked
    monkeypatch.setattr("rayloom.actors.passing.KNOWN_S", 0.0)
    assert not await desk.passing.known(now + 3)
