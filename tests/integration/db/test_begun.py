"""Plans that begin before they are whole: what runs already, what the whole plan makes of it, and how it may end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Bug, ErrorInfo, Stale
from rayloom.db import growth, task_moves
from rayloom.db.growth import GrowingTask
from rayloom.db.incarnations import begin_incarnation, dead_with_leases, end_incarnation
from rayloom.db.logs import LogFilter, Position, read_log
from rayloom.db.submit import NewTask, accept_plan, submit_task
from rayloom.db.task_moves import claim_tasks
from tests.integration.db.spine import Edges, Spine, plan_of

FAILED = ErrorInfo(code="PLAN_FAILED", error_class="user", message="no plan", retryable=False)


async def _begin(spine: Spine, edges: Edges, **more: Any) -> GrowingTask:
    return await _taken(spine, await spine.begin(edges, **more))


async def _taken(spine: Spine, task_id: UUID, **how: Any) -> GrowingTask:
    (task,) = [each for each in await spine.growing(partial=True, **how) if each.task_id == task_id]
    return task


async def _whole(spine: Spine, task: GrowingTask, edges: Edges, *, dropped: Sequence[str] = (), **how: Any) -> Any:
    return await spine.extend(task, edges, goes_around=False, dropped=dropped, **how)


async def test_what_has_begun_runs_and_keeps_its_task_open_until_the_plan_is_whole(spine: Spine) -> None:
    task = await _begin(spine, {"a": []})
    assert (await spine.task(task.task_id))["plan_meta"]["partial"] is True
    await spine.succeed((await spine.claim(task.task_id))["a"], output=1)
    row = await spine.task(task.task_id)
    assert (row["status"], row["open_count"], row["incarnation"]) == ("PROCESSING", 1, spine.incarnation)
    await spine.audit()
    committed = await _whole(spine, task, {}, replans=2)
    assert committed.closed == ((str(task.task_id), "COMPLETED"),)
    row = await spine.task(task.task_id)
    assert (row["result"], row["incarnation"], row["replans_left"]) == (1, None, 2)
    assert "partial" not in row["plan_meta"]
    rows = await spine.rows(
        "SELECT reason FROM task_events WHERE task_id = $1 AND kind = 'plan' ORDER BY id", row["id"]
    )
    assert [each["reason"] for each in rows] == ["begins with 1 subtasks", "whole: 0 more subtasks, width 1"]
    page = await read_log(spine.engine, task.task_id, LogFilter(), Position(), limit=100)
    told = [line.message for line in page.entries if line.message.startswith("plan ")]
    assert told == ["plan begins with 1 subtasks", "plan is whole: 0 more subtasks, width 1"]


async def test_it_is_never_completed_by_its_beginning_alone(spine: Spine) -> None:
    task = await _begin(spine, {"a": []})
    await spine.succeed((await spine.claim(task.task_id))["a"], output=1)
    with pytest.raises(asyncpg.CheckViolationError, match="ck_tasks_whole"):
        await growth.end_growth(spine.engine, task.task_id, spine.incarnation, spent=False)
    assert (await spine.task(task.task_id))["status"] == "PROCESSING"


async def test_what_is_added_waits_for_what_runs_and_not_for_what_is_done(spine: Spine) -> None:
    task = await _begin(spine, {"a": [], "b": []})
    claimed = await spine.claim(task.task_id)
    await spine.succeed(claimed["a"])
    await _whole(spine, task, {"c": ["a"], "d": ["a", "b"], "e": ["c", "d"]})
    assert await spine.statuses(task.task_id) == {
        "a": "COMPLETED", "b": "RUNNING", "c": "QUEUED", "d": "READY", "e": "READY",
    }  # fmt: skip
    await spine.audit()
    assert len((await spine.succeed(claimed["b"])).queued) == 1
    while some := await spine.claim(task.task_id):
        await spine.succeed(*some.values(), output="x")
    assert (await spine.task(task.task_id))["status"] == "COMPLETED"
    await spine.audit()


async def test_what_is_added_below_something_blocked_is_skipped(spine: Spine) -> None:
    task = await _begin(spine, {"a": [], "b": []})
    await spine.fail((await spine.claim(task.task_id))["a"])
    await _whole(spine, task, {"d": ["c"], "c": ["a"], "e": ["b"]})
    statuses = await spine.statuses(task.task_id)
    assert (statuses["c"], statuses["d"], statuses["e"]) == ("SKIPPED", "SKIPPED", "READY")
    await spine.audit()


async def test_what_the_whole_plan_does_without_is_stopped_and_no_part_of_the_result(spine: Spine) -> None:
    task = await _begin(spine, {"a": [], "done": [], "runs": [], "waits": ["runs"], "fails": [], "again": []})
    claimed = await spine.claim(task.task_id)
    await spine.succeed(claimed["a"], claimed["done"], output="x")
    await spine.fail(claimed["fails"])
    await spine.fail(claimed["again"], retry_in_s=60)
    await _whole(spine, task, {"b": ["a"]}, dropped=["done", "runs", "waits", "fails", "again"])
    assert await spine.statuses(task.task_id) == {
        "a": "COMPLETED", "done": "COMPLETED", "runs": "CANCELLED", "waits": "CANCELLED", "fails": "BLOCKED",
        "again": "CANCELLED", "b": "QUEUED",
    }  # fmt: skip
    await spine.audit()
    # What it still says comes too late.
    await spine.succeed(claimed["runs"], output="late")
    await spine.succeed((await spine.claim(task.task_id))["b"], output="y")
    row = await spine.task(task.task_id)
    assert (row["status"], row["result"]) == ("COMPLETED", "y")
    await spine.audit()


async def test_the_beginning_of_a_dead_scheduler_is_taken_over_and_itself_shut_out(spine: Spine) -> None:
    task = await _begin(spine, {"a": []})
    assert await spine.growing() == []
    other = uuid7()
    await begin_incarnation(spine.engine, other, actor=f"{spine.user_id} other", exclusive=False)
    assert await spine.growing(incarnation=other, partial=True) == []
    await end_incarnation(spine.engine, spine.incarnation)
    dead = await dead_with_leases(spine.engine)
    assert spine.incarnation in dead
    taken = await _taken(spine, task.task_id, incarnation=other, dead=dead)
    assert taken.plan == task.plan
    with pytest.raises(Stale):
        await _whole(spine, task, {"b": []})
    with pytest.raises(Stale):
        await _fail(spine, task)
    await _whole(spine, task, {"b": []}, incarnation=other, is_last=False)
    # Nor does it add to a plan that it does not know.
    with pytest.raises(Stale):
        await _whole(spine, task, {"c": []}, incarnation=other)
    await spine.audit()


async def _fail(spine: Spine, task: GrowingTask) -> task_moves.Ended:
    return await task_moves.end_task(
        spine.engine, task.task_id, status="FAILED", error=FAILED, reason="no plan", splitter=spine.incarnation
    )


async def test_of_a_plan_that_never_became_whole_nothing_can_be_run_again(spine: Spine) -> None:
    task = await _begin(spine, {"a": [], "b": [], "c": ["b"]})
    claimed = await spine.claim(task.task_id)
    await spine.fail(claimed["a"])
    ended = await _fail(spine, task)
    assert [sub_task_id for sub_task_id, _ in ended.stopped] == [claimed["b"].sub_task_id]
    assert await spine.statuses(task.task_id) == {"a": "BLOCKED", "b": "CANCELLED", "c": "CANCELLED"}
    row = await spine.task(task.task_id)
    assert (row["status"], row["error"]["code"], row["growth"]) == ("FAILED", "PLAN_FAILED", None)
    assert (await spine.retry(task.task_id)).queued == ()
    assert (await spine.task(task.task_id))["status"] == "FAILED"
    await spine.audit()


async def test_whoever_grows_a_whole_plan_does_not_split_it(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []})).task_id
    await spine.may_grow(task_id, 1)
    await spine.fail((await spine.claim(task_id))["a"])
    assert await spine.growing(partial=True) == []
    (task,) = await spine.growing()
    with pytest.raises(Stale):
        await _fail(spine, task)
    with pytest.raises(Stale):
        await _whole(spine, task, {"b": []})


@pytest.mark.parametrize("status", ["CANCELLED", "FAILED"])
async def test_a_task_that_has_begun_can_be_ended_by_others(spine: Spine, status: Any) -> None:
    task = await _begin(spine, {"a": []})
    error = FAILED if status == "FAILED" else None
    await task_moves.end_task(spine.engine, task.task_id, status=status, error=error, reason="enough")
    with pytest.raises(Stale):
        await _whole(spine, task, {"b": []})
    row = await spine.task(task.task_id)
    assert (row["status"], row["growth"], row["open_count"]) == (status, None, 0)
    assert await spine.growing(partial=True) == []
    await spine.audit()


async def test_a_plan_that_somebody_has_to_approve_does_not_grow(spine: Spine) -> None:
    new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=5)
    task_id = (await submit_task(spine.engine, spine.blobs, new)).task_id
    await claim_tasks(spine.engine, incarnation=spine.incarnation, dead=(), limit=1000, busy=())
    await accept_plan(
        spine.engine, spine.blobs, task_id, plan_of({"a": []}), meta={}, incarnation=spine.incarnation, replans=2,
        hold="over budget",
    )  # fmt: skip
    assert (await spine.task(task_id))["replans_left"] == 0


async def test_a_plan_that_somebody_has_to_approve_does_not_begin(spine: Spine) -> None:
    with pytest.raises(Bug):
        await spine.begin({"a": []}, options={"require_approval": True})
