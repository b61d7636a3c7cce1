"""The subtasks of a task, and their outputs."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rayloom.dag.states import SubtaskStatus
from rayloom.db import reads
from rayloom.serve import cursors, shapes
from rayloom.serve.auth import Owner
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.json_file import OUTPUT_TIMEOUT_S, json_file
from rayloom.serve.problems import not_found

router = APIRouter(prefix="/api/v1/tasks/{task_id}/subtasks", tags=["subtasks"])


async def owned(deps: Deps, task_id: str, user: UUID) -> UUID:
    """The id of a task that is this user's. Raises Problem (404)."""
    id_ = cursors.uuid_of(task_id, "this task")
    if await reads.task_status(deps.backends.primary, id_, user) is None:
        raise not_found("this task")
    return id_


@router.get("")
async def list_subtasks(
    request: Request,
    task_id: str,
    user: Owner,
    status: Annotated[list[str] | None, Query(description="one or several, by commas")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All subtasks, in the order of the plan. A page is shorter than ``limit`` where its outputs are large."""
    deps = deps_of(request)
    statuses = cursors.choices("status", status, SubtaskStatus)
    after = -1 if cursor is None else int(cursors.decode("subtasks", cursor, (int,))[0])
    id_ = await owned(deps, task_id, user)
    # An ordinal beyond 32 bits is beyond every plan.
    after = max(-1, min(after, 2**31 - 1))
    page, more = await reads.list_subtasks(deps.backends.primary, id_, after=after, limit=limit, statuses=statuses)
    next_cursor = shapes.subtask_cursor(page[-1]) if more else None
    return json_answer({"items": [shapes.subtask(id_, row) for row in page], "next_cursor": next_cursor})


@router.get("/{subtask}")
async def one_subtask(request: Request, task_id: str, subtask: str, user: Owner) -> Response:
    """One subtask, with its input and its attempts."""
    deps = deps_of(request)
    id_ = await owned(deps, task_id, user)
    found = await reads.subtask_with_attempts(deps.backends.primary, id_, subtask)
    if found is None:
        raise not_found("this subtask")
    return json_answer(shapes.subtask_in_full(id_, *found))


@router.get("/{subtask}/output")
async def output(request: Request, task_id: str, subtask: str, user: Owner) -> Response:
    """The whole output of a completed subtask, as a file."""
    deps = deps_of(request)
    id_ = await owned(deps, task_id, user)
    text = await reads.output_json(deps.backends.primary, id_, subtask)
    if text is None:
        raise not_found("an output of this subtask")
    call_of(request).allow(OUTPUT_TIMEOUT_S)
    # Ids hold nothing that would have to be quoted.
    return json_file(text, f"{subtask}.json")
