"""The way back from BLOCKED: what is kept, what is revived, and who is too late."""

from __future__ import annotations

import asyncio
from uuid import UUID

from rayloom.dag.errors import ErrorInfo
from rayloom.db import attempts, retries, task_moves
from rayloom.db.retries import NewInput
from tests.integration.db.spine import Spine

OVER = ErrorInfo(code="DEADLINE_EXCEEDED", error_class="user", message="too late", retryable=False)


async def fail_at(spine: Spine, task_id: UUID, *keys: str) -> None:
    """Run what can run, until these are BLOCKED."""
    while claimed := await spine.claim(task_id):
        await spine.succeed(*(one for key, one in claimed.items() if key not in keys), output="done")
        await spine.fail(*(one for key, one in claimed.items() if key in keys))


async def test_a_retry_keeps_what_completed_and_revives_what_was_skipped(spine: Spine) -> None:
    made = await spine.submit({"a": [], "bad": ["a"], "b": ["bad"], "c": ["b", "d"], "d": ["a"], "e": ["c"]})
    await fail_at(spine, made.task_id, "bad")
    assert await spine.statuses(made.task_id) == {
        "a": "COMPLETED", "bad": "BLOCKED", "b": "SKIPPED", "c": "SKIPPED", "d": "COMPLETED", "e": "SKIPPED",
    }  # fmt: skip
    committed = await spine.retry(made.task_id)
    assert [item.sub_task_id for item in committed.queued] == [(await spine.ids(made.task_id))["bad"]]
    assert committed.touched == {str(made.task_id)}
    assert await spine.statuses(made.task_id) == {
        "a": "COMPLETED", "bad": "QUEUED", "b": "READY", "c": "READY", "d": "COMPLETED", "e": "READY",
    }  # fmt: skip
    task = await spine.task(made.task_id)
    assert (task["status"], task["error"], task["finished_at"]) == ("PROCESSING", None, None)
    # What completed while it was SKIPPED is counted.
    assert (await spine.subtask(made.task_id, "c"))["pending_dependencies"] == 1
    await spine.audit()
    await fail_at(spine, made.task_id)
    assert (await spine.task(made.task_id))["status"] == "COMPLETED"
    assert (await spine.subtask(made.task_id, "bad"))["attempt"] == 2
    assert (await spine.subtask(made.task_id, "a"))["attempt"] == 1
    moves = await spine.events(made.task_id)
    assert moves[-3:] == [("PROCESSING", "FAILED"), ("FAILED", "PROCESSING"), ("PROCESSING", "COMPLETED")]


async def test_what_another_one_holds_stays_skipped(spine: Spine) -> None:
    made = await spine.submit({"x": [], "y": [], "both": ["x", "y"], "only": ["x"], "last": ["both", "only"]})
    await fail_at(spine, made.task_id, "x", "y")
    await spine.retry(made.task_id, "x")
    assert await spine.statuses(made.task_id) == {
        "x": "QUEUED", "y": "BLOCKED", "both": "SKIPPED", "only": "READY", "last": "SKIPPED",
    }  # fmt: skip
    await fail_at(spine, made.task_id)
    assert (await spine.task(made.task_id))["status"] == "FAILED"
    await spine.retry(made.task_id, "y")
    assert (await spine.subtask(made.task_id, "both"))["pending_dependencies"] == 1
    await fail_at(spine, made.task_id)
    assert (await spine.task(made.task_id))["status"] == "COMPLETED"


async def test_its_retries_begin_anew(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    await spine.fail(*(await spine.claim(made.task_id)).values(), retry_in_s=0)
    await spine.rows("SELECT requeue_due(10)")
    await spine.fail(*(await spine.claim(made.task_id)).values())
    await spine.retry(made.task_id)
    row = await spine.subtask(made.task_id, "a")
    assert (row["retry_count"], row["attempt"], row["error"]) == (0, 2, None)


async def test_of_many_retries_at_once_one_counts(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]})
    await fail_at(spine, made.task_id, "a")
    done = await asyncio.gather(*(spine.retry(made.task_id) for _ in range(20)))
    assert sorted(len(one.queued) for one in done) == [0] * 19 + [1]
    assert (await spine.task(made.task_id))["open_count"] == 2
    assert (await spine.events(made.task_id, "a")).count(("BLOCKED", "QUEUED")) == 1


async def test_either_a_retry_or_a_discard_wins(spine: Spine) -> None:
    for _ in range(10):
        made = await spine.submit({"a": []})
        await fail_at(spine, made.task_id, "a")
        id_ = UUID((await spine.ids(made.task_id))["a"])
        retried, discarded = await asyncio.gather(
            spine.retry(made.task_id), retries.discard_letters(spine.engine, [id_])
        )
        assert len(retried.queued) + discarded == 1


async def test_retries_across_tasks_go_with_the_commits_of_others(spine: Spine) -> None:
    made = [await spine.submit({"a": [], "b": ["a"]}) for _ in range(20)]
    for one in made:
        await fail_at(spine, one.task_id, "a")
    ids = [UUID((await spine.ids(one.task_id))["a"]) for one in made]

    async def some(order: list[UUID]) -> int:
        return len((await retries.retry_letters(spine.engine, order, reason="r")).queued)

    counts = await asyncio.gather(some(ids), some(ids[::-1]), some(ids[10:]), some(ids[:10]))
    assert sum(counts) == 20


async def test_what_its_deadline_has_ended_can_not_be_retried(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id)
    await spine.fail(claimed["a"])
    await task_moves.end_task(spine.engine, made.task_id, status="FAILED", error=OVER, reason="DEADLINE_EXCEEDED")
    assert not (await spine.retry(made.task_id)).queued
    assert (await spine.task(made.task_id))["status"] == "FAILED"


async def test_what_is_final_can_not_be_retried(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id)
    await spine.fail(claimed["a"])
    await task_moves.end_task(spine.engine, made.task_id, status="CANCELLED", error=None, reason="no more")
    assert not (await spine.retry(made.task_id)).queued


async def test_a_deadline_that_has_passed_holds_until_there_is_another(spine: Spine) -> None:
    made = await spine.submit({"a": []}, deadline_s=60.0, options={"budget": {"deadline_s": 60.0, "max_tokens": 5}})
    await fail_at(spine, made.task_id, "a")
    await spine.rows("UPDATE tasks SET deadline_at = now() - interval '1 s' WHERE id = $1", made.task_id)
    assert not (await spine.retry(made.task_id)).queued
    ids = [UUID(id_) for id_ in (await spine.ids(made.task_id)).values()]
    committed = await retries.retry_task(spine.engine, made.task_id, ids, budget={"deadline_s": 600.0}, reason="r")
    assert len(committed.queued) == 1
    task = await spine.task(made.task_id)
    assert task["options"]["budget"] == {"deadline_s": 600.0, "max_tokens": 5}
    (row,) = await spine.rows(
        "SELECT deadline_at > now() + interval '500 s' AS on FROM tasks WHERE id = $1", made.task_id
    )
    assert row["on"]
    # Nothing is BLOCKED any more, and so nothing is changed.
    again = await retries.retry_task(spine.engine, made.task_id, ids, budget={"max_tokens": 9}, reason="r")
    assert not again.queued
    assert (await spine.task(made.task_id))["options"]["budget"]["max_tokens"] == 5


async def test_another_input_becomes_part_of_the_plan(spine: Spine) -> None:
    made = await spine.submit({"a": [], "bad": [], "b": ["bad"]})
    await fail_at(spine, made.task_id, "bad")
    ids = await spine.ids(made.task_id)
    given = NewInput(value={"v": {"$ref": "a.output"}}, referred=("a",), dependencies=("a",))
    committed = await retries.retry_with_input(spine.engine, spine.blobs, UUID(ids["bad"]), given, reason="r")
    assert len(committed.queued) == 1
    row = await spine.subtask(made.task_id, "bad")
    assert (row["input_context"], row["referred"], row["dependencies"]) == (given.value, ["a"], ["a"])
    assert [str(id_) for id_ in (await spine.subtask(made.task_id, "a"))["dependents"]] == [ids["bad"]]
    plan = (await spine.task(made.task_id))["plan"]
    assert plan["subtasks"][1] == {"id": "bad", "type": "TOOL", "tool": "t", "depends_on": ["a"], "input": given.value}
    claimed = (await spine.claim(made.task_id))["bad"]
    assert claimed.referred == ("a",)
    # Whoever comes second changes nothing.
    late = NewInput(value={"late": True}, referred=(), dependencies=())
    assert not (await retries.retry_with_input(spine.engine, spine.blobs, UUID(ids["bad"]), late, reason="r")).queued
    assert (await spine.subtask(made.task_id, "bad"))["input_context"] == given.value
    await spine.succeed(claimed, output=1)
    await fail_at(spine, made.task_id)
    assert (await spine.task(made.task_id))["result"] == "done"


async def test_an_outcome_of_before_comes_too_late(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    old = (await spine.claim(made.task_id))["a"]
    await spine.fail(old)
    await spine.retry(made.task_id)
    assert not (await spine.succeed(old)).accepted
    assert await attempts.statuses(spine.engine, [old.sub_task_id]) == {old.sub_task_id: "QUEUED"}
