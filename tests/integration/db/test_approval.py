"""Approval: what waits for a person is a row, a decision counts once, and nothing else is let through by it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from rayloom.dag.errors import Stale
from rayloom.dag.values import JsonObject
from rayloom.db import approvals, leases, task_moves
from rayloom.db.approvals import EXPIRED, Decided
from rayloom.db.submit import NewTask, accept_plan, submit_task
from tests.integration.db.spine import ASKS, CONTINUE, Spine, default, plan_of


async def _approve(spine: Spine, task_id: UUID, subtask: str | None = None) -> Decided:
    return await approvals.approve(spine.engine, task_id, subtask=subtask, reason="approved by ann")


async def _reject(spine: Spine, task_id: UUID, subtask: str | None = None) -> Decided:
    return await approvals.reject(spine.engine, task_id, subtask=subtask, reason="rejected by ann: not today")


async def _decisions(spine: Spine, task_id: UUID) -> list[tuple[Any, ...]]:
    rows = await spine.rows(
        "SELECT subtask, from_status, to_status, reason FROM task_events WHERE task_id = $1 AND kind = 'approval' "
        "ORDER BY id",
        task_id,
    )
    return [tuple(row) for row in rows]


async def _age(spine: Spine, task_id: UUID, seconds: float) -> None:
    """Let what waits have waited longer."""
    for table, column in (("sub_tasks", "parent_id"), ("tasks", "id")):
        await spine.rows(
            f"UPDATE {table} SET held_at = held_at - make_interval(secs => $2) WHERE {column} = $1", task_id, seconds
        )


async def test_a_subtask_waits_when_its_dependencies_are_done_and_goes_on_when_approved(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"], "c": ["b"]}, {"b": ASKS})
    task_id = made.task_id
    committed = await spine.succeed((await spine.claim(task_id))["a"])
    assert committed.queued == ()
    assert await spine.statuses(task_id) == {"a": "COMPLETED", "b": "AWAITING_APPROVAL", "c": "READY"}
    row = await spine.subtask(task_id, "b")
    assert (row["attempt"], row["incarnation"], row["queued_at"]) == (0, None, None)
    # Nobody can take it, and its task goes on.
    assert await spine.claim(task_id) == {}
    assert (await spine.task(task_id))["status"] == "PROCESSING"
    decided = await _approve(spine, task_id, "b")
    assert (decided.plan, decided.subtasks, decided.status) == (False, ("b",), "PROCESSING")
    assert [item.sub_task_id for item in decided.queued] == [(await spine.ids(task_id))["b"]]
    await spine.succeed((await spine.claim(task_id))["b"])
    await spine.succeed((await spine.claim(task_id))["c"], output="end")
    assert (await spine.task(task_id))["status"] == "COMPLETED"
    assert await _decisions(spine, task_id) == [
        ("b", "READY", "AWAITING_APPROVAL", "asked"),
        ("b", "AWAITING_APPROVAL", "QUEUED", "approved by ann"),
    ]


async def test_a_root_waits_from_the_start_and_so_does_what_is_freed_by_something_missing(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": ["b"]}, {"a": ASKS, "b": CONTINUE, "c": ASKS})
    assert len(made.queued) == 1
    await spine.fail((await spine.claim(made.task_id))["b"])
    assert await spine.statuses(made.task_id) == {
        "a": "AWAITING_APPROVAL", "b": "BLOCKED", "c": "AWAITING_APPROVAL",
    }  # fmt: skip
    # Without a name: everything that waits now.
    assert (await _approve(spine, made.task_id)).subtasks == ("a", "c")
    await spine.succeed(*(await spine.claim(made.task_id)).values())
    assert (await spine.task(made.task_id))["status"] == "COMPLETED"


async def test_approving_one_frees_no_other_and_nothing_twice(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": [], "c": ["a"]}, dict.fromkeys("abc", ASKS))
    assert (await _approve(spine, made.task_id, "a")).subtasks == ("a",)
    again = await _approve(spine, made.task_id, "a")
    assert (again.found, again.refused_status, again.is_unknown, again.queued) == (True, "QUEUED", False, ())
    early = await _approve(spine, made.task_id, "c")
    assert early.refused_status == "READY"
    unknown = await _approve(spine, made.task_id, "nobody")
    assert unknown.is_unknown
    assert await spine.statuses(made.task_id) == {"a": "QUEUED", "b": "AWAITING_APPROVAL", "c": "READY"}
    assert not (await _approve(spine, uuid4())).found
    assert not (await _reject(spine, uuid4())).found


async def test_of_parallel_decisions_on_one_subtask_one_counts(spine: Spine) -> None:
    made = await spine.submit({key: [] for key in "abcd"}, dict.fromkeys("abcd", ASKS))
    decisions = [(_approve if n % 2 else _reject)(spine, made.task_id, key) for n in range(6) for key in "abcd"]
    decided = await asyncio.gather(*decisions)
    counted = [each for each in decided if each.subtasks]
    assert sorted(each.subtasks[0] for each in counted) == list("abcd")
    assert all(each.refused_status in ("QUEUED", "BLOCKED") for each in decided if not each.subtasks)
    statuses = await spine.statuses(made.task_id)
    assert set(statuses.values()) <= {"QUEUED", "BLOCKED"}


async def test_a_rejected_subtask_is_a_dead_letter_and_its_policy_decides_for_the_others(spine: Spine) -> None:
    plan = {"stop": [], "below": ["stop"], "go": [], "after": ["go"], "give": [], "taken": ["give"]}
    policies = {"stop": ASKS, "go": ASKS | CONTINUE, "give": ASKS | default(1)}
    made = await spine.submit(plan, policies)
    decided = await _reject(spine, made.task_id)
    assert decided.subtasks == ("stop", "go", "give")
    assert len(decided.queued) == 2
    assert await spine.statuses(made.task_id) == {
        "stop": "BLOCKED", "below": "SKIPPED", "go": "BLOCKED", "after": "QUEUED", "give": "BLOCKED", "taken": "QUEUED",
    }  # fmt: skip
    error = (await spine.subtask(made.task_id, "stop"))["error"]
    assert error == {
        "code": "REJECTED", "class": "refused", "message": "rejected by ann: not today", "retryable": False,
    }  # fmt: skip
    await spine.succeed(*(await spine.claim(made.task_id)).values())
    assert (await spine.task(made.task_id))["status"] == "FAILED"


@pytest.mark.parametrize(("policy", "status"), [({}, "FAILED"), (CONTINUE, "COMPLETED")])
async def test_rejecting_the_last_thing_closes_the_task(spine: Spine, policy: Any, status: str) -> None:
    made = await spine.submit({"a": []}, {"a": ASKS | policy})
    assert (await _reject(spine, made.task_id)).status == status
    assert (await spine.task(made.task_id))["status"] == status
    assert (await _approve(spine, made.task_id)).refused_status == status


async def test_a_plan_waits_as_a_whole(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"], "c": []}, {"c": ASKS}, require_approval=True)
    task_id = made.task_id
    assert made.queued == ()
    assert await spine.statuses(task_id) == dict.fromkeys("abc", "PENDING")
    task = await spine.task(task_id)
    assert (task["status"], task["open_count"], task["plan"] is None) == ("READY", 3, False)
    assert await spine.claim(task_id) == {}
    # A part of it can't be decided on by itself.
    assert (await _approve(spine, task_id, "a")).refused_status == "PENDING"
    assert (await _reject(spine, task_id, "a")).refused_status == "PENDING"
    decided = await _approve(spine, task_id)
    assert (decided.plan, decided.subtasks, len(decided.queued)) == (True, (), 1)
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY", "c": "AWAITING_APPROVAL"}
    assert (await spine.task(task_id))["held_at"] is None
    assert await _decisions(spine, task_id) == [
        (None, "SPLITTING", "READY", "asked"),
        (None, "READY", "PROCESSING", "approved by ann"),
        ("c", "READY", "AWAITING_APPROVAL", "asked"),
    ]
    await _approve(spine, task_id)
    for key in "ab":
        await spine.succeed((await spine.claim(task_id, key))[key])
    await spine.succeed((await spine.claim(task_id))["c"])
    assert (await spine.task(task_id))["status"] == "COMPLETED"


async def test_a_rejected_plan_ends_its_task_with_the_reason(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": ["a"]}, require_approval=True)
    decided = await _reject(spine, made.task_id)
    assert (decided.plan, decided.status) == (True, "CANCELLED")
    task = await spine.task(made.task_id)
    assert (task["status"], task["error"]["code"], task["error"]["message"]) == (
        "CANCELLED", "REJECTED", "rejected by ann: not today",
    )  # fmt: skip
    assert set((await spine.statuses(made.task_id)).values()) == {"CANCELLED"}
    assert (await _approve(spine, made.task_id)).refused_status == "CANCELLED"


async def test_of_parallel_decisions_on_a_plan_one_counts(spine: Spine) -> None:
    made = await spine.submit({"a": []}, require_approval=True)
    decided = await asyncio.gather(*((_approve if n % 2 else _reject)(spine, made.task_id) for n in range(10)))
    assert sum(each.plan for each in decided) == 1
    assert (await spine.task(made.task_id))["status"] in ("PROCESSING", "CANCELLED")


async def test_a_cancelled_task_takes_no_decision_any_more(spine: Spine) -> None:
    made = await spine.submit({"a": [], "b": []}, {"a": ASKS})
    await task_moves.end_task(spine.engine, made.task_id, status="CANCELLED", error=None, reason="no more")
    assert (await _approve(spine, made.task_id, "a")).refused_status == "CANCELLED"
    assert (await _reject(spine, made.task_id)).refused_status == "CANCELLED"
    assert await spine.statuses(made.task_id) == {"a": "CANCELLED", "b": "CANCELLED"}


async def test_a_deadline_ends_what_waits(spine: Spine) -> None:
    made = await spine.submit({"a": []}, require_approval=True, deadline_s=0.001)
    other = await spine.submit({"a": []}, {"a": ASKS}, deadline_s=0.001)
    assert {made.task_id, other.task_id} <= set(await task_moves.expired_tasks(spine.engine))


async def test_what_waits_too_long_is_rejected(spine: Spine) -> None:
    old = await spine.submit({"a": [], "b": ["a"]}, {"a": ASKS | CONTINUE})
    young = await spine.submit({"a": []}, {"a": ASKS})
    plan = await spine.submit({"a": []}, require_approval=True)
    fresh = await spine.submit({"a": []}, require_approval=True)
    await _age(spine, old.task_id, 100)
    await _age(spine, plan.task_id, 100)
    expired = await approvals.expire(spine.engine, ttl_s=60)
    assert str(old.task_id) in expired.touched
    assert str(young.task_id) not in expired.touched
    assert [item.sub_task_id for item in expired.queued] == [(await spine.ids(old.task_id))["b"]]
    assert (await spine.subtask(old.task_id, "a"))["error"]["message"] == EXPIRED
    assert await spine.statuses(young.task_id) == {"a": "AWAITING_APPROVAL"}
    assert await approvals.expired_plans(spine.engine, ttl_s=60) == (plan.task_id,)
    await approvals.reject(spine.engine, plan.task_id, subtask=None, reason=EXPIRED)
    assert (await spine.task(plan.task_id))["status"] == "CANCELLED"
    assert (await spine.task(fresh.task_id))["status"] == "READY"
    assert (await approvals.expire(spine.engine, ttl_s=60)).touched == frozenset()


async def test_a_sweep_is_bounded(spine: Spine) -> None:
    made = await spine.submit({f"s{n}": [] for n in range(5)}, {f"s{n}": ASKS for n in range(5)})
    await _age(spine, made.task_id, 100)
    await approvals.expire(spine.engine, ttl_s=60, limit=2)
    assert sorted((await spine.statuses(made.task_id)).values()) == ["AWAITING_APPROVAL"] * 3 + ["BLOCKED"] * 2


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_plan_that_was_made_from_a_prompt_waits_too(spine: Spine, is_held: bool) -> None:
    options: JsonObject = {"require_approval": True} if is_held else {}
    new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=5, options=options)
    task_id = (await submit_task(spine.engine, spine.blobs, new)).task_id
    await task_moves.claim_tasks(spine.engine, incarnation=spine.incarnation, dead=(), limit=100)
    plan = plan_of({"a": [], "b": ["a"]})
    queued = await accept_plan(spine.engine, spine.blobs, task_id, plan, meta={}, incarnation=spine.incarnation)
    assert len(queued) == (0 if is_held else 1)
    assert (await spine.task(task_id))["status"] == ("READY" if is_held else "PROCESSING")
    with pytest.raises(Stale):
        await accept_plan(spine.engine, spine.blobs, task_id, plan, meta={}, incarnation=spine.incarnation)
    if is_held:
        assert len((await _approve(spine, task_id)).queued) == 1
    assert await spine.statuses(task_id) == {"a": "QUEUED", "b": "READY"}


async def test_a_retry_of_what_was_approved_asks_no_more(spine: Spine) -> None:
    made = await spine.submit({"a": []}, {"a": ASKS})
    await _approve(spine, made.task_id)
    await spine.fail((await spine.claim(made.task_id))["a"], retry_in_s=0)
    await leases.requeue_due(spine.engine)
    assert await spine.statuses(made.task_id) == {"a": "QUEUED"}
