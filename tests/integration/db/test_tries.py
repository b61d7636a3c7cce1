"""What was tried for a plan: written down when the database takes it, told once, and never paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.actors import growing as growing_module
from rayloom.actors import splitting as module
from rayloom.dag.errors import Bug, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import ModelUse
from rayloom.dag.ports import PARSER_BROKE
from rayloom.dag.tried import TRIED as KEPT
from rayloom.dag.tried import Kept, PlanCall, Tried
from rayloom.db import growth, retries, task_moves
from rayloom.db.engine import dump
from rayloom.db.incarnations import begin_incarnation, end_incarnation
from tests.integration.db import test_growing as growths
from tests.integration.db import test_splitting as splits
from tests.integration.db.spine import Spine
from tests.integration.db.test_splitting import PLAN, ScriptedParser

CALL = PlanCall(purpose="split", model="m", use=ModelUse(tokens_in=5, tokens_out=6), began_s=0, duration_s=0.1)
TRIED = Tried(notes=("what was wrong",), calls=(CALL,), text="{}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_S", "AGAIN_MAX_S"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(growing_module, "AGAIN_S", 0.0)


@pytest.fixture
async def spine(spine: Spine) -> AsyncIterator[Spine]:
    """The one user's tasks; every other user's are put away by their own tests."""
    yield spine
    await spine.put_away()


def after(error: RayloomError, tried: Tried = TRIED) -> RayloomError:
    error.tried = tried
    return error


def away_at_first(what: Callable[..., Awaitable[Any]], times: int = 2) -> Callable[..., Awaitable[Any]]:
    """The same, with a database that is away so often first."""

    async def flaky(*arguments: Any, **named: Any) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            raise Transient("DATABASE_UNAVAILABLE", "away")
        return await what(*arguments, **named)

    return flaky


async def submitted(spine: Spine, *script: Any) -> tuple[UUID, splits.Bench]:
    task_id = await splits._submit(spine)
    return task_id, splits.Bench(spine, ScriptedParser(*script), spine.incarnation)


async def told(spine: Spine, task_id: UUID) -> list[str]:
    """What the log says of calls, and of what was wrong."""
    rows = await spine.rows("SELECT message FROM log_lines WHERE task_id = $1 ORDER BY id", task_id)
    return [row["message"] for row in rows if row["message"] in (CALL.line, "what was wrong")]


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (UserError("PLAN_FAILED", "no plan"), "PLAN_FAILED"),
        (Refused("BUDGET_EXCEEDED", "spent"), "BUDGET_EXCEEDED"),
        (Transient("MODEL_UNAVAILABLE", "away"), "MODEL_UNAVAILABLE"),
    ],
)
async def test_a_failed_planning_is_written_down_when_the_database_is_back_and_no_model_is_asked_again(
    spine: Spine, monkeypatch: pytest.MonkeyPatch, ended: RayloomError, code: str
) -> None:
    monkeypatch.setattr(module, "AWAY_MAX_S", -1.0)
    monkeypatch.setattr(task_moves, "end_task", away_at_first(task_moves.end_task))
    task_id, bench = await submitted(spine, after(ended))
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"], len(bench.parser.asked)) == ("FAILED", code, 1)
    assert (task["plan_meta"]["usage"]["tokens"], task["plan_meta"]["notes"]) == (11, ["what was wrong"])
    assert await told(spine, task_id) == [CALL.line, "what was wrong"]
    await spine.audit()


async def test_a_failure_that_can_not_be_written_down_at_all_gives_way_to_that(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, end_task = 3, task_moves.end_task

    async def breaking(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Bug("BROKEN", "what nobody thought of")
        return await end_task(*arguments, **named)

    monkeypatch.setattr(task_moves, "end_task", breaking)
    task_id, bench = await submitted(spine, after(UserError("PLAN_FAILED", "no plan")))
    await bench.through()
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["code"], len(bench.parser.asked)) == ("FAILED", "BROKEN", 1)


async def _next_life(spine: Spine, bench: splits.Bench | growths.Bench) -> None:
    """The scheduler dies as soon as its task waits for a model, and another one lives."""
    planning = bench.splitting if isinstance(bench, splits.Bench) else bench.growing
    await planning.turn(spine.incarnation)
    async with asyncio.timeout(120):
        while not planning._jobs.waiting:
            bench.room.clear()
            await bench.room.wait()
    await planning.close()
    await end_incarnation(spine.engine, spine.incarnation)
    spine.incarnation = uuid7()
    await begin_incarnation(spine.engine, spine.incarnation, actor="the next", exclusive=False)


async def test_the_next_life_goes_on_from_what_was_tried(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_S", "AGAIN_MAX_S"):
        monkeypatch.setattr(module, name, 3_600.0)
    task_id, bench = await submitted(spine, after(Transient("MODEL_UNAVAILABLE", "away")))
    await _next_life(spine, bench)
    heir = splits.Bench(spine, ScriptedParser(PLAN), spine.incarnation)
    await heir.through()
    assert [asked.tried for asked in heir.parser.asked] == [TRIED]
    task = await spine.task(task_id)
    assert (task["status"], "tried" in task["plan_meta"]) == ("PROCESSING", False)


async def test_what_can_not_be_kept_now_is_kept_with_the_next_try(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = list[Any]()

    async def keeping(*arguments: Any) -> None:
        kept.append(arguments[-1].tried)
        await task_moves.keep_tried(*arguments)

    monkeypatch.setattr("rayloom.actors.tries.keep_tried", away_at_first(keeping, 1))
    again = Transient("MODEL_UNAVAILABLE", "away")
    _, bench = await submitted(spine, after(Transient("MODEL_UNAVAILABLE", "away")), again, again, PLAN)
    await bench.through()
    assert kept == [TRIED]


async def test_a_retry_goes_on_from_what_was_tried_and_tells_it_once(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AWAY_MAX_S", -1.0)
    task_id, bench = await submitted(spine, after(Transient("MODEL_UNAVAILABLE", "away")))
    await bench.through()
    assert await retries.plan_again(spine.engine, task_id, budget=None, reason="retried") == "PENDING"
    planned = replace(splits._planned(calls=(CALL,)), notes=("what was wrong", "mended"))
    again = splits.Bench(spine, ScriptedParser(planned), spine.incarnation)
    await again.through()
    assert [asked.tried for asked in again.parser.asked] == [TRIED]
    assert await told(spine, task_id) == [CALL.line, "what was wrong"]
    task = await spine.task(task_id)
    assert ("tried" in task["plan_meta"], task["plan_meta"]["usage"]["tokens"]) == (False, 11)


async def test_from_what_broke_the_parser_nobody_goes_on(spine: Spine) -> None:
    broke = Transient(PARSER_BROKE, "it died")
    task_id, bench = await submitted(spine, after(Transient("MODEL_UNAVAILABLE", "away")), broke, broke, broke)
    await bench.through()
    assert bench.parser.asked[-1].tried == TRIED
    assert await retries.plan_again(spine.engine, task_id, budget=None, reason="retried") == "PENDING"
    again = splits.Bench(spine, ScriptedParser(PLAN), spine.incarnation)
    await again.through()
    assert [asked.tried for asked in again.parser.asked] == [Tried()]


@pytest.mark.parametrize("how", ["end_growth", "refuse_growth"])
async def test_a_growth_that_was_given_up_is_so_when_the_database_is_back(
    spine: Spine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    where, code = (growth, "PLAN_FAILED") if how == "end_growth" else (retries, "BUDGET_EXCEEDED")
    monkeypatch.setattr(where, how, away_at_first(getattr(where, how)))
    bench = growths.Bench(spine, after(Refused(code, "no more")))
    task_id = await bench.task()
    await bench.through()
    assert ((await spine.task(task_id))["status"], len(bench.planner.asked), bench.closed) == ("FAILED", 1, 1)
    assert await told(spine, task_id) == [CALL.line, "what was wrong"]
    said = (await spine.notes(task_id))[None]  # type: ignore[index]  # the task's own lines
    assert said.count("no other plan could be made") == 1
    await spine.audit()


async def test_a_growth_goes_on_from_what_was_tried_too(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_S", "AGAIN_MAX_S"):
        monkeypatch.setattr(module, name, 3_600.0)
    bench = growths.Bench(spine, after(Transient("MODEL_UNAVAILABLE", "away")))
    task_id = await bench.task()
    await _next_life(spine, bench)
    more = Tried(notes=TRIED.notes, calls=(CALL, CALL), text="{} ")
    heir = growths.Bench(spine, after(Refused("BUDGET_EXCEEDED", "spent"), more))
    await heir.through()
    assert [asked.request.tried for asked in heir.planner.asked] == [TRIED]
    assert await retries.plan_again(spine.engine, task_id, budget={"max_tokens": 9}, reason="retried") == "PROCESSING"
    last = growths.Bench(spine, growths._more(growths.AROUND))
    await last.through()
    assert [asked.request.tried for asked in last.planner.asked] == [more]
    assert "tried" not in (await spine.task(task_id))["plan_meta"]
    assert await told(spine, task_id) == [CALL.line, CALL.line, "what was wrong"]
    await spine.audit()


async def test_what_is_blocked_after_a_retry_by_hand_is_answered_anew(spine: Spine) -> None:
    bench = growths.Bench(spine, after(Refused("BUDGET_EXCEEDED", "spent")))
    task_id = await bench.task()
    await bench.through()
    assert KEPT in (await spine.task(task_id))["plan_meta"]
    assert (await spine.retry(task_id, "a")).queued
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["a"])
    again = growths.Bench(spine, growths._more(growths.AROUND))
    await again.through()
    assert [asked.request.tried for asked in again.planner.asked] == [Tried()]
    await spine.audit()


@pytest.mark.parametrize("is_partial", [False, True])
async def test_a_retry_by_hand_keeps_what_is_written_of_a_plan_that_is_not_whole(
    spine: Spine, is_partial: bool
) -> None:
    task_id = (await spine.submit({"a": [], "b": []})).task_id
    await spine.fail((await spine.claim(task_id))["a"])
    kept = Kept(tried=TRIED).meta()
    sql = "UPDATE tasks SET plan_meta = coalesce(plan_meta, '{}') || $2::jsonb WHERE id = $1"
    await spine.rows(sql, task_id, dump(kept | {"partial": is_partial}))
    assert (await spine.retry(task_id, "a")).queued
    assert (KEPT in (await spine.task(task_id))["plan_meta"]) is is_partial
