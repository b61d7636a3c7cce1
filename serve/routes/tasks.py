"""Submit, list, look, cancel: the life of a task over HTTP."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from rayloom.dag.errors import Fault, Transient
from rayloom.dag.states import TaskStatus
from rayloom.db import reads
from rayloom.db.reads import TaskFilter
from rayloom.db.submit import submit_task
from rayloom.db.task_moves import end_task
from rayloom.serve import cursors, shapes
from rayloom.serve.auth import Me, Owner
from rayloom.serve.bodies import PLAN_THREAD_BYTES, off_loop, read_object, schema_of
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


@router.post("", status_code=202, openapi_extra=schema_of(Submission))
async def submit(
    request: Request, me: Me, idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None
) -> Response:
    """Submit a task. 202 means that it is on disk."""
    deps = deps_of(request)
    call_of(request).allow(deps.settings.submit_timeout_s)
    key = idempotency_key(idempotency)
    document = await read_object(request)
    size = call_of(request).body_bytes
    print_ = await off_loop(size, lambda: fingerprint_of(document)) if key is not None else b""
    if key is not None:
        earlier = await reads.submitted_before(deps.backends.primary, me.user_id, key)
        if earlier is not None:
            if earlier[0] != print_:
                raise Problem(
                    422,
                    "this Idempotency-Key was used with another request body",
                    code="IDEMPOTENCY_MISMATCH",
                    errors=[Fault("/headers/Idempotency-Key", "was used with another request body")],
                )
            return _accepted(str(earlier[1]), replayed=True)
    submission = await off_loop(size, lambda: read_submission(document))
    judge = Judge(deps, me)
    await judge.prepare()
    raw = document.get("plan")
    plan = None
    if raw is not None:
        plan = await off_loop(size, lambda: judge.plan(raw, submission.tools), at_most=PLAN_THREAD_BYTES)
    task = new_task(
        submission,
        user_id=me.user_id,
        plan=plan,
        denied=judge.denied(submission.tools),
        key=key,
        print_=print_,
    )
    submitted = await submit_task(deps.backends.primary, task)
    task_id = str(submitted.task_id)
    if not submitted.replayed:
        log.info("task.submitted", extra={"task_id": task_id, "subtasks": len(plan.subtasks) if plan else None})
        if not await deps.backends.offer(submitted.queued, task_id):
            await wake(deps)
    return _accepted(task_id, replayed=submitted.replayed)


def _accepted(task_id: str, *, replayed: bool) -> Response:
    headers = {"Location": f"/api/v1/tasks/{task_id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    return json_answer({"task_id": task_id}, 202, headers)


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
        labels=tuple(_label(item) for item in label or ()),
    )
    after = cursors.decode_moment("tasks", cursor)
    replica = deps_of(request).backends.replica
    rows = await reads.list_tasks(replica, user_id=user, wanted=wanted, after=after, limit=limit + 1)
    page = rows[:limit]
    more = len(rows) > limit
    next_cursor = cursors.encode_moment("tasks", page[-1].created_at, page[-1].id) if more else None
    return json_answer({"items": [shapes.task_item(row) for row in page], "next_cursor": next_cursor})


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise invalid([Fault("/query/label", "must be name=value")])
    return name, value


@router.get("/{task_id}")
async def details(request: Request, task_id: str, user: Owner) -> Response:
    """A task, its progress, and its first 1,000 subtasks."""
    id_ = cursors.uuid_of(task_id, "this task")
    found = await reads.task_details(deps_of(request).backends.primary, id_, user, limit=shapes.FIRST_SUBTASKS)
    if found is None:
        raise not_found("this task")
    return json_answer(shapes.details(*found))


@router.get("/{task_id}/result")
async def result(request: Request, task_id: str, user: Owner) -> Response:
    """The whole result of a completed task, as a file."""
    id_ = cursors.uuid_of(task_id, "this task")
    text = await reads.result_json(deps_of(request).backends.primary, id_, user)
    if text is None:
        raise not_found("a result of this task")
    call_of(request).allow(OUTPUT_TIMEOUT_S)
    return json_file(text, f"{id_}.json")


@router.post("/{task_id}/cancel", status_code=202)
async def cancel(request: Request, task_id: str, user: Owner) -> Response:
    """Cancel a task. Its running subtasks are stopped within two seconds."""
    deps = deps_of(request)
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
        return json_answer({"task_id": id_, "status": TaskStatus.CANCELLED, "stopped": []}, 202)
    log.info("task.cancelled", extra={"task_id": task_id, "stopped": len(ended.stopped)})
    await deps.backends.offer((), str(id_))
    if ended.stopped:
        await stop(deps, ended.stopped)
    stopped = [{"sub_task_id": sub_task_id, "attempt": attempt} for sub_task_id, attempt in ended.stopped]
    return json_answer({"task_id": id_, "status": TaskStatus.CANCELLED, "stopped": stopped}, 202)


async def stop(deps: Deps, stopped: tuple[tuple[str, int], ...]) -> None:
    """Have the attempts stopped. A scheduler that can't be reached finds their rows CANCELLED by itself."""
    try:
        await ask(deps.ports.scheduler.stop(stopped), "the scheduler", timeout_s=STOP_TIMEOUT_S)
    except Transient:
        log.warning("scheduler.not_told_to_stop", extra={"attempts": len(stopped)})
