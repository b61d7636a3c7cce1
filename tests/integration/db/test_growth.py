"""Plans that grow: what is added runs on what is done, and a task that grows does not end meanwhile."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import ErrorInfo, Stale
from rayloom.dag.plan import subtasks_of
from rayloom.db import attempts, growth, task_moves
from rayloom.db.forks import stored_plan
from rayloom.db.incarnations import begin_incarnation, dead_with_leases, end_incarnation
from rayloom.db.logs import LogFilter, Position, read_log
from tests.integration.db.spine import Edges, Spine, outcome

FORBIDDEN = ErrorInfo(code="BUDGET_EXCEEDED", error_class="refused", message="no money left", retryable=False)


async def _planned(spine: Spine, edges: Edges, *, replans: int = 2) -> UUID:
    """A task of a plan that may grow."""
    task_id = (await spine.submit(edges)).task_id
    await spine.may_grow(task_id, replans)
    return task_id


async def _blocked(spine: Spine, edges: Edges, key: str, *, replans: int = 2) -> UUID:
    """One of which all is done but what is BLOCKED, and what waits for that."""
    task_id = await _planned(spine, edges, replans=replans)
    while claimed := await spine.claim(task_id):
        await spine.succeed(*(one for one in claimed.values() if one.key != key), output={"of": "all"})
        if key in claimed:
            await spine.fail(claimed[key])
    return task_id


async def _growing(spine: Spine, task_id: UUID) -> growth.GrowingTask:
    (task,) = [each for each in await spine.growing() if each.task_id == task_id]
    return task


async def test_a_task_with_something_blocked_is_due_to_grow(spine: Spine) -> None:
    task_id = await _planned(spine, {"a": [], "b": ["a"]})
    committed = await spine.fail((await spine.claim(task_id))["a"])
    assert (committed.grows, committed.closed) == (True, ())
    task = await spine.task(task_id)
    assert (task["status"], task["growth"], task["open_count"], task["replans_left"]) == ("PROCESSING", "due", 1, 1)
    rows = await spine.rows("SELECT reason FROM task_events WHERE task_id = $1 AND kind = 'plan' ORDER BY id", task_id)
    assert rows[-1]["reason"] == "BLOCKED: a"
    page = await read_log(spine.engine, task_id, LogFilter(), Position(), limit=100)
    told = [line.message for line in page.entries if line.message.startswith("plan ")]
    assert told == ["plan accepted: 2 subtasks, width 1", "plan is to grow: BLOCKED: a"]
    await spine.audit()


async def test_a_plan_goes_around_what_is_blocked(spine: Spine) -> None:
    task_id = await _blocked(spine, {"a": [], "b": [], "c": ["a", "b"]}, "b")
    task = await _growing(spine, task_id)
    committed = await spine.extend(task, {"b2": ["a"], "c2": ["a", "b2"]}, meta={"joiner": None})
    assert [one.sub_task_id for one in committed.queued] == [(await spine.ids(task_id))["b2"]]
    assert await spine.statuses(task_id) == {
        "a": "COMPLETED", "b": "BLOCKED", "c": "SKIPPED", "b2": "QUEUED", "c2": "READY",
    }  # fmt: skip
    await spine.audit()
    for key in ("b2", "c2"):
        await spine.succeed((await spine.claim(task_id))[key], output={"by": key})
    row = await spine.task(task_id)
    assert (row["status"], row["result"], row["growth"]) == ("COMPLETED", {"by": "c2"}, None)
    assert (await spine.retry(task_id)).queued == ()
    (letter,) = await spine.rows("SELECT status FROM dead_letters WHERE task_id = $1", task_id)
    assert letter["status"] == "discarded"
    await spine.audit()


async def test_a_fork_goes_the_way_around(spine: Spine) -> None:
    task_id = await _blocked(spine, {"a": [], "b": [], "c": ["a", "b"]}, "b")
    await spine.extend(await _growing(spine, task_id), {"b2": ["a"], "c2": ["a", "b2"]})
    stored = await stored_plan(spine.engine, task_id, spine.user_id)
    assert stored is not None
    assert stored.plan is not None
    assert [subtask["id"] for subtask in subtasks_of(stored.plan)] == ["a", "b2", "c2"]
    assert stored.statuses == {"a": "COMPLETED", "b2": "QUEUED", "c2": "READY"}
    assert set(stored.dependencies) == {"a", "b2", "c2"}


@pytest.mark.parametrize("replans", [0, 1])
async def test_a_task_grows_no_more_often_than_it_may(spine: Spine, replans: int) -> None:
    task_id = await _blocked(spine, {"a": []}, "a", replans=replans)
    for turn in range(replans):
        await spine.extend(await _growing(spine, task_id), {f"again{turn}": []})
        await spine.fail((await spine.claim(task_id))[f"again{turn}"])
    row = await spine.task(task_id)
    assert (row["status"], row["error"]["code"]) == ("FAILED", "SUBTASKS_BLOCKED")
    assert await spine.growing() == []
    await spine.audit()


async def test_what_is_not_blocked_any_more_is_not_gone_around(spine: Spine) -> None:
    task_id = await _blocked(spine, {"a": [], "b": []}, "a")
    task = await _growing(spine, task_id)
    await spine.retry(task_id, "a")
    with pytest.raises(Stale) as moved:
        await spine.extend(task, {"c": []}, while_blocked=["a"])
    assert moved.value.code == growth.NOT_BLOCKED
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "COMPLETED"}
    await spine.audit()


async def test_no_plan_goes_around_a_rule(spine: Spine) -> None:
    task_id = await _planned(spine, {"a": [], "b": []})
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["a"])
    ending = spine.ending(claimed["b"], outcome(error=FORBIDDEN))
    committed = await attempts.complete(spine.engine, [ending])
    assert (committed.grows, len(committed.closed)) == (False, 1)
    assert (await spine.task(task_id))["status"] == "FAILED"


async def test_a_joiner_asks_for_more_once(spine: Spine) -> None:
    task_id = await _planned(spine, {"a": [], "answer": ["a"]})
    await spine.rows("""UPDATE tasks SET plan_meta = '{"joiner": "answer"}' WHERE id = $1""", task_id)
    await spine.succeed((await spine.claim(task_id))["a"])
    committed = await spine.succeed((await spine.claim(task_id))["answer"], output={"more": "the year is missing"})
    assert committed.grows
    await spine.extend(await _growing(spine, task_id), {"b": ["answer"]}, meta={"joiner": None})
    await spine.succeed((await spine.claim(task_id))["b"], output="1969")
    row = await spine.task(task_id)
    assert (row["status"], row["result"], row["replans_left"]) == ("COMPLETED", "1969", 1)
    await spine.audit()


@pytest.mark.parametrize("output", [{"answer": "42"}, {"more": ""}, {"more": None}, "more", None])
async def test_a_joiner_that_is_content_ends_the_task(spine: Spine, output: Any) -> None:
    task_id = await _planned(spine, {"answer": []})
    await spine.rows("""UPDATE tasks SET plan_meta = '{"joiner": "answer"}' WHERE id = $1""", task_id)
    await spine.succeed((await spine.claim(task_id))["answer"], output=output)
    row = await spine.task(task_id)
    assert (row["status"], row["result"]) == ("COMPLETED", output)


async def test_the_growth_of_a_dead_scheduler_is_taken_over_and_itself_shut_out(spine: Spine) -> None:
    task_id = await _blocked(spine, {"a": []}, "a")
    task = await _growing(spine, task_id)
    other = uuid7()
    await begin_incarnation(spine.engine, other, actor=f"{spine.user_id} other", exclusive=False)
    assert await spine.growing(incarnation=other) == []
    await end_incarnation(spine.engine, spine.incarnation)
    dead = await dead_with_leases(spine.engine)
    assert spine.incarnation in dead
    assert [each.task_id for each in await spine.growing(incarnation=other, dead=dead)] == [task.task_id]
    with pytest.raises(Stale):
        await spine.extend(task, {"b": []})
    assert (await growth.end_growth(spine.engine, task.task_id, spine.incarnation, spent=True)).touched == frozenset()
    await spine.extend(task, {"b": []}, incarnation=other, is_last=False)
    # Nor does it add to a plan that it does not know.
    with pytest.raises(Stale):
        await spine.extend(task, {"c": []}, incarnation=other)
    await spine.audit()


@pytest.mark.parametrize("status", ["CANCELLED", "FAILED"])
async def test_a_task_that_grows_can_be_ended(spine: Spine, status: Any) -> None:
    task = await _growing(spine, await _blocked(spine, {"a": []}, "a"))
    error = FORBIDDEN if status == "FAILED" else None
    await task_moves.end_task(spine.engine, task.task_id, status=status, error=error, reason="enough")
    with pytest.raises(Stale):
        await spine.extend(task, {"b": []})
    row = await spine.task(task.task_id)
    assert (row["status"], row["growth"], row["open_count"]) == (status, None, 0)
    assert await spine.growing() == []
    await spine.audit()


async def test_what_is_retried_by_hand_meanwhile_is_not_gone_around(spine: Spine) -> None:
    task_id = await _blocked(spine, {"a": [], "b": ["a"]}, "a")
    task = await _growing(spine, task_id)
    assert len((await spine.retry(task_id, "a")).queued) == 1
    await spine.extend(task, {"c": []})
    while some := await spine.claim(task_id):
        await spine.succeed(*some.values(), output="x")
    row = await spine.task(task_id)
    assert (row["status"], row["result"]) == ("COMPLETED", {"b": "x", "c": "x"})
    await spine.audit()
