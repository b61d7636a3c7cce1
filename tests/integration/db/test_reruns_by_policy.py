"""The way back from BLOCKED, where policies and approval have their say."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from rayloom.db import approvals, letters, retries
from rayloom.db.letters import LetterFilter
from tests.integration.db.spine import ASKS, CONTINUE, FALLBACK, Spine, default


async def fail_at(spine: Spine, task_id: UUID, *keys: str) -> None:
    """Run what can run, until these are BLOCKED."""
    while claimed := await spine.claim(task_id):
        await spine.succeed(*(one for key, one in claimed.items() if key not in keys), output="done")
        await spine.fail(*(one for key, one in claimed.items() if key in keys))


async def settled(spine: Spine, task_id: UUID) -> dict[str, bool]:
    """Whether nothing can come any more of each letter of a task."""
    rows = await spine.rows("SELECT subtask, settled_at FROM dead_letters WHERE task_id = $1", task_id)
    return {row["subtask"]: row["settled_at"] is not None for row in rows}


async def pending(spine: Spine, task_id: UUID) -> list[str]:
    """What a retry of the whole task would run."""
    (row,) = await spine.rows("SELECT now() AS now")
    return sorted(key for _, key in await retries.open_of_task(spine.engine, task_id, before=row["now"], limit=10))


async def test_what_others_went_on_without_is_not_retried(spine: Spine) -> None:
    plan = {"m": [], "n": [], "bad": [], "x": ["m", "bad"], "y": ["x", "n"]}
    task_id = (await spine.submit(plan, {"m": CONTINUE, "n": default(1)})).task_id
    await fail_at(spine, task_id, "m", "n", "bad")
    assert await settled(spine, task_id) == {"m": True, "n": True, "bad": False}
    assert await pending(spine, task_id) == ["bad"]
    assert not (await spine.retry(task_id, "m", "n")).queued
    assert (await spine.task(task_id))["status"] == "FAILED"
    committed = await spine.retry(task_id)
    assert [item.sub_task_id for item in committed.queued] == [(await spine.ids(task_id))["bad"]]
    # What is missing holds nobody, and is not waited for.
    assert await spine.statuses(task_id) == {
        "m": "BLOCKED", "n": "BLOCKED", "bad": "QUEUED", "x": "READY", "y": "READY",
    }  # fmt: skip
    assert (await spine.subtask(task_id, "x"))["pending_dependencies"] == 1
    assert (await spine.subtask(task_id, "y"))["pending_dependencies"] == 1
    await spine.audit()
    await fail_at(spine, task_id)
    task = await spine.task(task_id)
    assert (task["status"], task["blocked_count"]) == ("COMPLETED", 2)


async def test_a_missing_letter_can_be_put_away_and_is_forgotten(spine: Spine) -> None:
    task_id = (await spine.submit({"m": [], "a": []}, {"m": CONTINUE})).task_id
    await spine.fail((await spine.claim(task_id, "m"))["m"])
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    (row,) = await letters.list_letters(
        spine.engine, user_id=spine.user_id, wanted=LetterFilter(statuses=("open",)), after=None, limit=5
    )
    assert (row.subtask, row.has_stand_in) == ("m", True)
    assert await retries.discard_letters(spine.engine, [row.id]) == 1
    await fail_at(spine, task_id)
    assert (await spine.task(task_id))["status"] == "COMPLETED"


async def test_a_fallback_that_failed_begins_with_its_own_tool_again(spine: Spine) -> None:
    task_id = (await spine.submit({"a": []}, {"a": FALLBACK})).task_id
    tools = []
    for _ in range(2):
        (claimed,) = (await spine.claim(task_id)).values()
        tools.append(claimed.tool)
        await spine.fail(claimed)
    assert (await spine.statuses(task_id), tools) == ({"a": "BLOCKED"}, ["t", "u"])
    on_fallback = await _fingerprint(spine, task_id)
    await spine.retry(task_id)
    for _ in range(2):
        (claimed,) = (await spine.claim(task_id)).values()
        tools.append(claimed.tool)
        await spine.fail(claimed)
    assert tools == ["t", "u", "t", "u"]
    assert await _fingerprint(spine, task_id) == on_fallback
    assert (await spine.subtask(task_id, "a"))["fallback_attempts"] == [2, 4]
    # The same error of another tool is another cause.
    other = (await spine.submit({"a": []})).task_id
    await fail_at(spine, other, "a")
    assert await _fingerprint(spine, other) != on_fallback


async def _fingerprint(spine: Spine, task_id: UUID) -> Any:
    (row,) = await spine.rows("SELECT fingerprint FROM dead_letters WHERE task_id = $1", task_id)
    return row["fingerprint"]


async def test_a_rejection_is_not_passed_by_a_retry(spine: Spine) -> None:
    plan = {"asks": [], "bad": [], "below": ["asks", "bad"], "free": ["bad"]}
    task_id = (await spine.submit(plan, {"asks": ASKS})).task_id
    await fail_at(spine, task_id, "bad")
    await approvals.reject(spine.engine, task_id, subtask="asks", reason="no")
    assert (await spine.task(task_id))["status"] == "FAILED"
    assert await settled(spine, task_id) == {"asks": True, "bad": False}
    assert await pending(spine, task_id) == ["bad"]
    assert not (await spine.retry(task_id, "asks")).queued
    await spine.retry(task_id)
    assert await spine.statuses(task_id) == {
        "asks": "BLOCKED", "bad": "QUEUED", "below": "SKIPPED", "free": "READY",
    }  # fmt: skip
    await spine.audit()
    await fail_at(spine, task_id)
    assert (await spine.task(task_id))["status"] == "FAILED"


async def test_what_was_approved_runs_again_and_what_is_revived_asks(spine: Spine) -> None:
    task_id = (await spine.submit({"a": [], "b": ["a"]}, {"a": ASKS, "b": ASKS})).task_id
    await approvals.approve(spine.engine, task_id, subtask="a", reason="yes")
    await fail_at(spine, task_id, "a")
    assert await spine.statuses(task_id) == {"a": "BLOCKED", "b": "SKIPPED"}
    await spine.retry(task_id)
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY"}
    await fail_at(spine, task_id)
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "AWAITING_APPROVAL"}
    await approvals.approve(spine.engine, task_id, subtask="b", reason="yes")
    await fail_at(spine, task_id)
    assert (await spine.task(task_id))["status"] == "COMPLETED"
