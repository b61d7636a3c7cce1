"""What follows a failure by its subtask's policy: others go on without it, or it turns to its fallback."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayloom.dag.references import Outputs
from rayloom.db import attempts, leases, reads, results
from rayloom.db.attempts import Claimed
from rayloom.db.blobs import BlobStore
from rayloom.db.outputs import outputs
from tests.integration.db.spine import BROKEN, CONTINUE, FALLBACK, Spine, default, outcome

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


async def _details(spine: Spine, task_id: Any) -> tuple[str, list[str], Any]:
    found = await reads.task_details(spine.engine, task_id, spine.user_id, limit=100)
    assert found is not None
    return found.task.status, list(found.missing), found.task.result


async def test_dependents_go_on_with_null_and_the_task_says_what_is_missing(spine: Spine, blobs: BlobStore) -> None:
    task_id = (await spine.submit(DIAMOND, {"b": CONTINUE})).task_id
    await spine.succeed((await spine.claim(task_id))["a"], output=1)
    claimed = await spine.claim(task_id)
    await spine.succeed(claimed["c"], output=2)
    committed = await spine.fail(claimed["b"])
    # Freed by the very statement that blocks what it waited for.
    assert [item.sub_task_id for item in committed.queued] == [(await spine.ids(task_id))["d"]]
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "BLOCKED", "c": "COMPLETED", "d": "QUEUED"}
    assert await spine.notes(task_id) == {"d": "goes on without b (null stands in)"}
    assert await outputs(spine.engine, blobs, str(task_id), ["b", "c"], within_s=20) == Outputs(
        values={"b": None, "c": 2}, nothing=frozenset({"b"})
    )
    await spine.succeed((await spine.claim(task_id))["d"], output="whole")
    assert await _details(spine, task_id) == ("COMPLETED", ["b"], "whole")
    (row,) = await spine.rows(
        "SELECT reason FROM task_events WHERE task_id = $1 AND to_status = 'COMPLETED' AND kind = 'task'", task_id
    )
    assert row["reason"] == "missing: b"
    assert (await spine.task(task_id))["blocked_count"] == 1


async def test_a_default_stands_in_also_in_the_result(spine: Spine, blobs: BlobStore) -> None:
    plan = {"a": [], "b": ["a"], "c": []}
    task_id = (await spine.submit(plan, {"a": default({"n": [1]}), "c": CONTINUE})).task_id
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["a"], claimed["c"])
    assert await outputs(spine.engine, blobs, str(task_id), ["a"], within_s=20) == Outputs(values={"a": {"n": [1]}})
    assert await spine.notes(task_id) == {"b": "goes on without a (its default stands in)"}
    await spine.succeed((await spine.claim(task_id))["b"], output=3)
    assert await _details(spine, task_id) == ("COMPLETED", ["a", "c"], {"b": 3, "c": None})


@pytest.mark.parametrize("value", [None, {"much": "x" * 300_000}])
async def test_all_that_there_was_is_missing(spine: Spine, value: Any) -> None:
    task_id = (await spine.submit({"only": []}, {"only": default(value)})).task_id
    committed = await spine.fail((await spine.claim(task_id))["only"])
    assert committed.closed == ((str(task_id), "COMPLETED"),)
    status, missing, result = await _details(spine, task_id)
    assert (status, missing) == ("COMPLETED", ["only"])
    if value is None:
        assert result is None
    else:
        # Too large to be shown, and not the output of a subtask.
        assert result["$blob"] == f"/api/v1/tasks/{task_id}/result"
        whole = await results.result_bytes(spine.engine, spine.blobs, task_id, spine.user_id)
        assert whole is not None
        assert len(whole) == result["size"]


async def test_all_dependencies_are_missing_some_in_one_commit(spine: Spine) -> None:
    plan = {"a": [], "b": [], "c": [], "z": ["a", "b", "c"]}
    task_id = (await spine.submit(plan, {"a": CONTINUE, "b": default(0), "c": CONTINUE})).task_id
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["c"])
    assert (await spine.statuses(task_id))["z"] == "READY"
    await spine.fail(claimed["a"], claimed["b"])
    assert (await spine.statuses(task_id))["z"] == "QUEUED"
    said = (await spine.notes(task_id))["z"]
    assert said == ("goes on without c (null stands in); goes on without a (null stands in), b (its default stands in)")


async def test_a_batch_may_mix_every_policy(spine: Spine) -> None:
    plan = {
        "stops": [], "goes": [], "stands": [], "turns": [], "fine": [], "below": ["stops"], "deep": ["below", "goes"],
        "both": ["goes", "fine"], "last": ["stands", "turns"],
    }  # fmt: skip
    policies = {"goes": CONTINUE, "stands": default(7), "turns": FALLBACK}
    task_id = (await spine.submit(plan, policies)).task_id
    claimed = await spine.claim(task_id)
    endings = [spine.ending(claimed[key], outcome(error=BROKEN)) for key in ("stops", "goes", "stands", "turns")]
    endings.append(spine.ending(claimed["fine"], outcome(1)))
    await attempts.complete(spine.engine, endings)
    assert await spine.statuses(task_id) == {
        "stops": "BLOCKED", "goes": "BLOCKED", "stands": "BLOCKED", "turns": "QUEUED", "fine": "COMPLETED",
        "below": "SKIPPED", "deep": "SKIPPED", "both": "QUEUED", "last": "READY",
    }  # fmt: skip
    assert await spine.notes(task_id) == {
        "both": "goes on without goes (null stands in)", "last": "goes on without stands (its default stands in)",
    }  # fmt: skip
    claimed = await spine.claim(task_id)
    assert (claimed["turns"].tool, claimed["turns"].input) == ("u", '{"from": "the fallback"}')
    await spine.succeed(*claimed.values())
    await spine.succeed((await spine.claim(task_id))["last"])
    task = await spine.task(task_id)
    assert (task["status"], task["error"]["message"].partition(";")[0]) == (
        "FAILED", "1 of 9 subtasks could not be completed",
    )  # fmt: skip


async def test_below_a_block_all_is_skipped_while_the_sibling_goes_on(spine: Spine) -> None:
    plan = {"a": [], "x": ["a"], "y": ["a"], "under x": ["x"], "under y": ["y"], "join": ["under x", "under y"]}
    plan = {key.replace(" ", "_"): [each.replace(" ", "_") for each in above] for key, above in plan.items()}
    task_id = (await spine.submit(plan, {"x": CONTINUE})).task_id
    await spine.succeed((await spine.claim(task_id))["a"])
    claimed = await spine.claim(task_id)
    await spine.fail(claimed["y"])
    await spine.fail(claimed["x"])
    assert await spine.statuses(task_id) == {
        "a": "COMPLETED", "x": "BLOCKED", "y": "BLOCKED", "under_x": "QUEUED", "under_y": "SKIPPED", "join": "SKIPPED",
    }  # fmt: skip
    await spine.succeed((await spine.claim(task_id))["under_x"])
    assert (await spine.task(task_id))["status"] == "FAILED"


async def test_a_fallback_has_retries_of_its_own_and_then_it_is_over(spine: Spine) -> None:
    plan = {"a": [], "b": ["a"]}
    task_id = (await spine.submit(plan, {"a": FALLBACK | {"max_retries": 1}})).task_id

    async def fail(claimed: Claimed, *, again: bool) -> None:
        await spine.fail(claimed, retry_in_s=0 if again else None)
        await leases.requeue_due(spine.engine)

    first = (await spine.claim(task_id))["a"]
    assert (first.tool, first.retry_count) == ("t", 0)
    await fail(first, again=True)
    second = (await spine.claim(task_id))["a"]
    assert (second.tool, second.retry_count) == ("t", 1)
    await fail(second, again=False)
    third = (await spine.claim(task_id))["a"]
    assert (third.tool, third.retry_count, third.max_retries) == ("u", 0, 1)
    await fail(third, again=True)
    fourth = (await spine.claim(task_id))["a"]
    assert (fourth.tool, fourth.retry_count, fourth.attempt) == ("u", 1, 4)
    await fail(fourth, again=False)
    assert await spine.statuses(task_id) == {"a": "BLOCKED", "b": "SKIPPED"}
    assert (await spine.task(task_id))["status"] == "FAILED"
    row = await spine.subtask(task_id, "a")
    assert row["fallback_attempts"] == [3, 4]
    reasons = await spine.rows(
        "SELECT attempt, reason FROM task_events WHERE task_id = $1 AND from_status = 'FAILED' ORDER BY id",
        task_id,
    )
    assert [(row["attempt"], row["reason"]) for row in reasons] == [
        (1, "retry"), (2, "fallback"), (3, "retry"), (4, "BROKEN"),
    ]  # fmt: skip


async def test_a_fallback_that_works_completes_its_subtask(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []}, {"a": FALLBACK})).task_id
    committed = await spine.fail((await spine.claim(task_id))["a"])
    assert len(committed.queued) == 1
    await spine.succeed((await spine.claim(task_id))["a"], output="well")
    assert await _details(spine, task_id) == ("COMPLETED", [], "well")
    found = await reads.subtask_with_attempts(spine.engine, task_id, "a")
    assert found is not None
    assert found[0].fallback_attempts == [2]
    assert found[0].error is None


@pytest.mark.parametrize(("policies", "status"), [({"a": FALLBACK}, "QUEUED"), ({}, "FAILED")])
async def test_who_decides_may_turn_to_the_fallback_at_once(spine: Spine, policies: Any, status: str) -> None:
    task_id = (await spine.submit({"a": []}, policies)).task_id
    claimed = (await spine.claim(task_id))["a"]
    ending = attempts.Ending(
        sub_task_id=claimed.sub_task_id, attempt=claimed.attempt, outcome=outcome(error=BROKEN), retry_in_s=600.0,
        spends=False, use_fallback=True,
    )  # fmt: skip
    await attempts.complete(spine.engine, [ending])
    # Where there is none, the decision stands that was made for that.
    assert await spine.statuses(task_id) == {"a": status}


async def test_one_that_is_on_its_fallback_can_not_turn_to_it_again(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []}, {"a": FALLBACK})).task_id
    await spine.fail((await spine.claim(task_id))["a"])
    claimed = (await spine.claim(task_id))["a"]
    ending = attempts.Ending(
        sub_task_id=claimed.sub_task_id, attempt=claimed.attempt, outcome=outcome(error=BROKEN), use_fallback=True
    )
    await attempts.complete(spine.engine, [ending])
    assert await spine.statuses(task_id) == {"a": "BLOCKED"}


async def test_a_letter_that_is_retried_begins_with_its_own_tool(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []}, {"a": FALLBACK})).task_id
    for _ in range(2):
        await spine.fail((await spine.claim(task_id))["a"])
    # As a retry does it, inside one transaction that puts everything back.
    sql = (
        "UPDATE sub_tasks SET status = 'QUEUED', finished_at = NULL, queued_at = now() WHERE parent_id = $1 RETURNING *"
    )
    async with spine.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        assert driver is not None
        transaction = driver.transaction()
        await transaction.start()
        row = await driver.fetchrow(sql, task_id)
        await transaction.rollback()
    assert (row["on_fallback"], list(row["fallback_attempts"])) == (False, [2])


async def test_many_commits_at_once_free_each_dependent_once(spine: Spine) -> None:
    width = 24
    plan: dict[str, list[str]] = {f"s{n}": [] for n in range(width)}
    plan |= {f"j{n}": [f"s{k}" for k in range(width) if k % (n + 1) == 0] for n in range(8)}
    policies = {f"s{n}": CONTINUE for n in range(0, width, 2)}
    task_id = (await spine.submit(plan, policies)).task_id
    claimed = await spine.claim(task_id)
    await asyncio.gather(
        *(spine.fail(claimed[f"s{n}"]) if n % 2 == 0 else spine.succeed(claimed[f"s{n}"]) for n in range(width))
    )
    statuses = await spine.statuses(task_id)
    assert {statuses[f"j{n}"] for n in range(8)} == {"QUEUED"}
    for n in range(8):
        assert await spine.events(task_id, f"j{n}") == [("PENDING", "READY"), ("READY", "QUEUED")]
