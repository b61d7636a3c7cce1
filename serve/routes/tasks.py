"""Submit, list, look, cancel: the life of a task over HTTP."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from rayloom.dag.errors import Fault, Transient
from rayloom.dag.plan import MAX_FAULTS
from rayloom.dag.states import TaskStatus
from rayloom.dag.values import JsonObject
from rayloom.db import reads
from rayloom.db.keys import Principal
from rayloom.db.reads import TaskDetails, TaskFilter
from rayloom.db.results import result_bytes
from rayloom.db.submit import NewTask, submit_task
from rayloom.db.task_moves import end_task
from rayloom.serve import cursors, shapes
from rayloom.serve.apart import inline_outputs, shown_result
from rayloom.serve.auth import Me, Owner
from rayloom.serve.bodies import PLAN_THREAD_BYTES, expect_no_body, off_loop, read_object, schema_of
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.intake import Judge, Submission, conflict, fingerprint_of, idempotency_key, new_task, read_submission
from rayloom.serve.json_answer import json_answer
from rayloom.serve.json_file import OUTPUT_TIMEOUT_S, json_file
from rayloom.serve.problems import Problem, invalid, not_found

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/tasks", tags=["tasks"])
STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A submission that is on disk. ``secret``: what its webhook is signed with, where its receiver can't know."""

    task_id: str
    replayed: bool
    secret: str | None


@router.post("", status_code=202, openapi_extra=schema_of(Submission))
async def submit(
    request: Request, me: Me, idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None
) -> Response:
    """Submit a task. 202 means that it is on disk."""
    deps = deps_of(request)
    call_of(request).allow(deps.settings.submit_timeout_s)
    key = idempotency_key(idempotency)
    document = await read_object(request)
    return accepted(await take(deps, me, document, size=call_of(request).body_bytes, key=key))


async def take(deps: Deps, me: Principal, document: JsonObject, *, size: int, key: str | None) -> Taken:
    """Take a submission of about ``size`` bytes. ``key``: its Idempotency-Key.

    Raises Problem and InvalidPlan with all that is wrong with it, Transient while it can't be judged or written down.
    """
    print_ = await off_loop(size, lambda: fingerprint_of(document)) if key is not None else b""
    earlier = await submitted_before(deps, me.user_id, key, print_)
    if earlier is not None:
        return Taken(task_id=earlier, replayed=True, secret=deps.callbacks.told(document, me.user_id))
    submission, faults = await off_loop(size, lambda: read_submission(document, deps.callbacks))
    judge = Judge(deps, me)
    raw = document.get("plan")
    if faults:
        if raw is not None:
            faults += await judge.faults(raw, submission.tools, size=size)
        raise invalid(faults[:MAX_FAULTS])
    await judge.prepare()
    plan = None
    if raw is not None:
        plan = await off_loop(size, lambda: judge.plan(raw, submission.tools), at_most=PLAN_THREAD_BYTES)
    task = new_task(
        submission,
        who=me,
        plan=plan,
        denied=judge.denied(submission.tools),
        bounds=judge.bounds(),
        key=key,
        print_=print_,
        callback=deps.callbacks.of(submission.callback_url, submission.callback_secret, me.user_id),
    )
    return await accept(deps, task, secret=deps.callbacks.told(document, me.user_id))


async def submitted_before(deps: Deps, user: UUID, key: str | None, print_: bytes) -> str | None:
    """The id of the task that an equal request with this Idempotency-Key made before. Raises Problem (422)."""
    earlier = await reads.submitted_before(deps.backends.primary, user, key) if key is not None else None
    if earlier is None:
        return None
    if earlier[0] != print_:
        raise Problem(
            422,
            "this Idempotency-Key was used with another request body",
            code="IDEMPOTENCY_MISMATCH",
            errors=[Fault("/headers/Idempotency-Key", "was used with another request body")],
        )
    return str(earlier[1])


async def accept(deps: Deps, task: NewTask, *, secret: str | None) -> Taken:
    """Write a task down, and offer what of it can run. ``secret``: see ``Taken``."""
    submitted = await submit_task(deps.backends.primary, deps.backends.blobs, task)
    task_id = str(submitted.task_id)
    if not submitted.replayed:
        count = len(task.plan.subtasks) if task.plan is not None else None
        log.info("task.submitted", extra={"task_id": task_id, "subtasks": count})
        if not await deps.backends.offer(submitted.queued, task_id):
            await wake(deps)
    return Taken(task_id=task_id, replayed=submitted.replayed, secret=secret)


def accepted(taken: Taken) -> Response:
    """The 202 of a submission."""
    headers = {"Location": f"/api/v1/tasks/{taken.task_id}"}
    if taken.replayed:
        headers["Idempotent-Replayed"] = "true"
    document = {"task_id": taken.task_id}
    if taken.secret is not None:
        document["callback_secret"] = taken.secret
        headers["Cache-Control"] = "no-store"
    return json_answer(document, 202, headers)


async def wake(deps: Deps) -> None:
    """Tell the scheduler without Redis that there is work. It finds the work by itself too, only later."""
    try:
        await ask(deps.ports.scheduler.wake(), "the scheduler", timeout_s=1.0)
    except Transient:
        log.warning("scheduler.not_woken")


@router.get("")
async def list_tasks(
    request: Request,
    user: Owner,
    status: Annotated[list[str] | None, Query(description="one or several, by commas")] = None,
    priority: Annotated[int | None, Query(ge=1, le=10)] = None,
    created_after: str | None = None,
    created_before: str | None = None,
    q: Annotated[str | None, Query(max_length=1000, description="text in title or prompt")] = None,
    label: Annotated[list[str] | None, Query(max_length=64, description="name=value, all must hold")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Tasks, newest first."""
    wanted = TaskFilter(
        statuses=cursors.choices("status", status, TaskStatus),
        priority=priority,
        created_after=cursors.moment("created_after", created_after),
        created_before=cursors.moment("created_before", created_before),
        text=q,
        labels=tuple(label_of(item) for item in label or ()),
    )
    return json_answer(await page_of_tasks(deps_of(request), user, wanted, limit=limit, cursor=cursor))


async def page_of_tasks(deps: Deps, user: UUID, wanted: TaskFilter, *, limit: int, cursor: str | None) -> shapes.Shown:
    """A page of a user's tasks. Raises Problem (422) for a cursor of another list."""
    after = cursors.decode_moment("tasks", cursor)
    rows = await deps.backends.reads.current(
        lambda source: reads.list_tasks(source, user_id=user, wanted=wanted, after=after, limit=limit + 1)
    )
    page = rows[:limit]
    more = len(rows) > limit
    next_cursor = cursors.encode_moment("tasks", page[-1].created_at, page[-1].id) if more else None
    return {"items": [shapes.task_item(row) for row in page], "next_cursor": next_cursor}


def label_of(text: str) -> tuple[str, str]:
    """A label in the query. Raises Problem (422)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise invalid([Fault("/query/label", "must be name=value")])
    return name, value


@router.get("/{task_id}")
async def details(request: Request, task_id: str, user: Owner) -> Response:
    """A task, its progress, and its first 1,000 subtasks."""
    deps = deps_of(request)
    found = await found_details(deps, task_id, user, limit=shapes.FIRST_SUBTASKS)
    result_, kept = await shown_result(deps, found.task), await inline_outputs(deps, found.subtasks)
    return json_answer(shapes.details(found, result_, kept))


async def found_details(deps: Deps, task_id: str, user: UUID, *, limit: int) -> TaskDetails:
    """A user's task, with its first ``limit`` subtasks. Raises Problem (404)."""
    id_ = cursors.uuid_of(task_id, "this task")
    found = await reads.task_details(deps.backends.primary, id_, user, limit=limit)
    if found is None:
        raise not_found("this task")
    return found


@router.get("/{task_id}/result")
async def result(request: Request, task_id: str, user: Owner) -> Response:
    """The whole result of a completed task, as a file."""
    id_ = cursors.uuid_of(task_id, "this task")
    backends = deps_of(request).backends
    # Before it is fetched: a large one may take its time on both ways.
    call_of(request).allow(OUTPUT_TIMEOUT_S)
    content = await result_bytes(backends.primary, backends.blobs, id_, user)
    if content is None:
        raise not_found("a result of this task")
    return json_file(content, f"{id_}.json")


@router.post("/{task_id}/cancel", status_code=202)
async def cancel(request: Request, task_id: str, user: Owner) -> Response:
    """Cancel a task. Its running subtasks are stopped within two seconds; the answer says what was under way.

    `stopped`: the attempts that are stopped, and in which phase; `withdrawn`: how many waited, by status, and never
    begin; `completed`: what was done already, counted, and the first 100 named.
    """
    await expect_no_body(request)
    return json_answer(await cancelled(deps_of(request), task_id, user), 202)


async def cancelled(deps: Deps, task_id: str, user: UUID) -> shapes.Shown:
    """Cancel a user's task; gives what was under way. Raises Problem: 404, and 409 for one that has ended otherwise."""
    id_ = cursors.uuid_of(task_id, "this task")
    status = await reads.task_status(deps.backends.primary, id_, user)
    if status is None:
        raise not_found("this task")
    ended = await end_task(deps.backends.primary, id_, status="CANCELLED", error=None, reason="cancelled by its user")
    if not ended.found:
        raise not_found("this task")
    if ended.refused_status is not None:
        if ended.refused_status != TaskStatus.CANCELLED:
            raise conflict(ended.refused_status, "cancelled")
        return shapes.cancelled(id_, ended.halt)
    log.info("task.cancelled", extra={"task_id": task_id, "stopped": len(ended.stopped)})
    await deps.backends.offer((), str(id_))
    if ended.stopped:
        await stop(deps, ended.stopped)
    return shapes.cancelled(id_, ended.halt)


async def stop(deps: Deps, stopped: tuple[tuple[str, int], ...]) -> None:
    """Have the attempts stopped. A scheduler that can't be reached finds their rows CANCELLED by itself."""
    try:
        await ask(deps.ports.scheduler.stop(stopped), "the scheduler", timeout_s=STOP_TIMEOUT_S)
    except Transient:
        log.warning("scheduler.not_told_to_stop", extra={"attempts": len(stopped)})
