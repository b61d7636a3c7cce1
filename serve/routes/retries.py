"""A task that goes on although it has failed, and one that begins where another one has come to."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Request
from pydantic import Field
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.dag.plan import MAX_FAULTS, MAX_SUBTASKS, Budget
from rayloom.dag.states import SubtaskStatus, TaskStatus
from rayloom.db import forks, retries
from rayloom.db.forks import TakenOver
from rayloom.db.retries import BlockedTask, Standing
from rayloom.db.submit import NewTask
from rayloom.serve import cursors
from rayloom.serve.auth import Me, Owner
from rayloom.serve.bodies import Body, off_loop, read_object, read_optional, schema_of, validated
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.intake import MAX_DEADLINE_S, Judge, conflict, fingerprint_of, idempotency_key
from rayloom.serve.json_answer import json_answer
from rayloom.serve.letter_shapes import DEADLINE_PASSED, ENDED_BY_DEADLINE
from rayloom.serve.problems import Problem, invalid, not_found
from rayloom.serve.reruns import no_plan, plan_of_fork, unknown_ids
from rayloom.serve.routes.letters import BATCH, BULK_TIMEOUT_S, offer
from rayloom.serve.routes.tasks import Taken, accept, accepted, submitted_before, wake
from rayloom.serve.shapes import Shown

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])
REASON: Final = "the task is retried"


class RetryBody(Body):
    """The body of ``POST /api/v1/tasks/{id}/retry``. Without ``subtasks`` all that is BLOCKED is meant."""

    subtasks: Annotated[list[str], Field(min_length=1, max_length=MAX_SUBTASKS)] | None = None
    budget: Budget | None = None


class ForkBody(Body):
    """The body of ``POST /api/v1/tasks/{id}/fork``: what is run anew, with all that depends on it."""

    from_: Annotated[list[str], Field(alias="from", min_length=1, max_length=MAX_SUBTASKS)]
    inputs: dict[str, dict[str, Any]] = Field(default_factory=dict)


@router.post("/{task_id}/retry", status_code=202, openapi_extra=schema_of(RetryBody, required=False))
async def retry(request: Request, task_id: str, user: Owner) -> Response:
    """Run again what is BLOCKED of a task, and what was SKIPPED for it; what has completed is kept.

    A task that failed before it had a whole plan, and not over its prompt, is planned again.
    """
    body = await read_optional(request, RetryBody)
    call_of(request).allow(BULK_TIMEOUT_S)
    return json_answer(await retried(deps_of(request), task_id, user, body), 202)


async def retried(deps: Deps, task_id: str, user: UUID, body: RetryBody) -> Shown:
    """Retry a user's task; gives which subtasks run again.

    Raises Problem: 404 and 422 for what is unknown, 409 for what can't be retried.
    """
    id_ = cursors.uuid_of(task_id, "this task")
    budget = None if body.budget is None else body.budget.model_dump(exclude_none=True)
    if budget is not None and budget.get("deadline_s", 0) > MAX_DEADLINE_S:
        raise invalid([Fault("/budget/deadline_s", f"must be at most {MAX_DEADLINE_S:,} seconds")])
    task = await retries.blocked_task(deps.backends.primary, id_, user)
    if task is None:
        raise not_found("this task")
    _refuse(task, has_new_deadline=bool(budget and "deadline_s" in budget))
    if body.subtasks is not None:
        await _expect_blocked(deps, id_, body.subtasks)
    elif task.status == TaskStatus.FAILED:
        planned = await retries.plan_again(deps.backends.primary, id_, budget=budget, reason=REASON)
        if planned is not None:
            if not await deps.backends.offer((), str(id_)):
                await wake(deps)
            log.info("task.planned_again", extra={"task_id": task_id, "status": planned})
            return {"task_id": id_, "status": planned, "retried": []}
    keys_: list[str] = []
    while True:
        page = await retries.open_of_task(deps.backends.primary, id_, before=task.now, limit=BATCH, keys=body.subtasks)
        committed = await retries.retry_task(
            deps.backends.primary, id_, [letter for letter, _ in page], budget=budget, reason=REASON
        )  # fmt: skip
        await offer(deps, committed)
        again = {item.sub_task_id for item in committed.queued}
        keys_ += [key for letter, key in page if str(letter) in again]
        if len(page) < BATCH or not again:
            break
        budget = None
    if not keys_:
        raise Problem(409, "nothing of the task is BLOCKED that could be retried", code="NOTHING_BLOCKED")
    log.info("task.retried", extra={"task_id": task_id, "subtasks": len(keys_)})
    return {"task_id": id_, "status": TaskStatus.PROCESSING, "retried": keys_}


def _refuse(task: BlockedTask, *, has_new_deadline: bool) -> None:
    if task.status not in (TaskStatus.PROCESSING, TaskStatus.FAILED):
        raise conflict(task.status, "retried")
    if task.status == TaskStatus.FAILED and task.error_code == "DEADLINE_EXCEEDED":
        raise Problem(409, ENDED_BY_DEADLINE, code="DEADLINE_EXCEEDED")
    if not task.retryable and not has_new_deadline:
        raise Problem(409, DEADLINE_PASSED, code="DEADLINE_PASSED")


async def _expect_blocked(deps: Deps, task_id: UUID, ids: list[str]) -> None:
    """Raises Problem: 422 for what is unknown, 409 for what is not BLOCKED or never to run again."""
    standings = await retries.standings_of(deps.backends.primary, task_id, ids)
    named = [(f"/subtasks/{place}", id_) for place, id_ in enumerate(ids)]
    faults = unknown_ids(named, standings)
    if faults:
        raise invalid(faults)
    for pointer, id_ in named:
        if (why := _why_not(standings[id_])) is not None:
            faults.append(Fault(pointer, f"`{id_}` {why}"))
    if faults:
        message = "what is named can't be retried: see `errors`"
        raise Problem(409, message, code="WRONG_STATE", errors=faults[:MAX_FAULTS])


def _why_not(standing: Standing) -> str | None:
    if standing.status != SubtaskStatus.BLOCKED:
        return f"is {standing.status}, not BLOCKED"
    if standing.is_missing:
        return "is missing, and the others went on without it: only a fork can run it anew"
    if standing.is_rejected:
        return "was rejected: only a fork asks for its approval anew"
    if standing.is_discarded:
        return "has a letter that was discarded: only a fork can run it anew"
    return None


@router.post("/{task_id}/fork", status_code=202, openapi_extra=schema_of(ForkBody))
async def fork(
    request: Request,
    task_id: str,
    user: Owner,
    me: Me,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """A new task that takes over what this one has completed, and runs the named subtasks and all below them anew."""
    deps = deps_of(request)
    call_of(request).allow(deps.settings.submit_timeout_s)
    id_ = cursors.uuid_of(task_id, "this task")
    key = idempotency_key(idempotency)
    document = await read_object(request)
    size = call_of(request).body_bytes
    print_ = b""
    if key is not None:
        print_ = await off_loop(size, lambda: fingerprint_of({"fork": str(id_), "body": document}))
    earlier = await submitted_before(deps, user, key, print_)
    if earlier is not None:
        return accepted(Taken(task_id=earlier, replayed=True, secret=None))
    body = validated(document, ForkBody)
    stored = await forks.stored_plan(deps.backends.primary, id_, user)
    if stored is None:
        raise not_found("this task")
    if stored.plan is None:
        raise no_plan(stored.status)
    judge = Judge(deps, me)
    await judge.prepare()
    plan, done = await plan_of_fork(judge, stored, body.from_, body.inputs)
    budget = stored.options.get("budget")
    deadline_s = budget.get("deadline_s") if isinstance(budget, dict) else None
    task = NewTask(
        user_id=user,
        key_id=me.key_id,
        title=stored.title,
        prompt=stored.prompt,
        priority=stored.priority,
        context=stored.context,
        options={**stored.options, "tools": judge.narrowed(stored.options.get("tools")), "forked_from": str(id_)},
        labels=stored.labels,
        plan=plan,
        require_approval=stored.options.get("require_approval") is True,
        taken_over=TakenOver(task_id=id_, keys=done),
        deadline_s=float(deadline_s) if isinstance(deadline_s, int | float) else None,
        idempotency_key=key,
        fingerprint=print_,
    )
    # No callback: whoever is told at the original's would take this one's end for that.
    return accepted(await accept(deps, task, secret=None))
