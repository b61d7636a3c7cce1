"""The subtasks of a task, and their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rayloom.dag.states import SubtaskStatus
from rayloom.db import reads
from rayloom.db.reads import Record
from rayloom.db.results import output_bytes
from rayloom.serve import cursors, shapes
from rayloom.serve.apart import inline_outputs, shown_input
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
    id_, page, next_cursor = await page_of_subtasks(deps, task_id, user, statuses, limit=limit, cursor=cursor)
    kept = await inline_outputs(deps, page)
    return json_answer({"items": [shapes.subtask(id_, row, kept) for row in page], "next_cursor": next_cursor})


async def page_of_subtasks(
    deps: Deps, task_id: str, user: UUID, statuses: tuple[str, ...], *, limit: int, cursor: str | None
) -> tuple[UUID, Sequence[Record], str | None]:
    """A page of the subtasks of a user's task: its id, the rows, and the cursor of the next page.

    Raises Problem: 404, and 422 for a cursor of another list.
    """
    after = -1 if cursor is None else int(cursors.decode("subtasks", cursor, (int,))[0])
    id_ = await owned(deps, task_id, user)
    # An ordinal beyond 32 bits is beyond every plan.
    after = max(-1, min(after, 2**31 - 1))
    page, more = await reads.list_subtasks(deps.backends.primary, id_, after=after, limit=limit, statuses=statuses)
    return id_, page, shapes.subtask_cursor(page[-1]) if more else None


@router.get("/{subtask}")
async def one_subtask(request: Request, task_id: str, subtask: str, user: Owner) -> Response:
    """One subtask, with its input and its attempts."""
    deps = deps_of(request)
    id_, row, attempts = await found_subtask(deps, task_id, user, subtask)
    given, kept = await shown_input(deps, row, row.input_context), await inline_outputs(deps, [row])
    return json_answer(shapes.subtask_in_full(id_, row, attempts, given.as_json(), kept))


async def found_subtask(deps: Deps, task_id: str, user: UUID, subtask: str) -> tuple[UUID, Record, list[Record]]:
    """A subtask of a user's task: that task's id, its row, and its attempts that have ended. Raises Problem (404)."""
    id_ = await owned(deps, task_id, user)
    found = await reads.subtask_with_attempts(deps.backends.primary, id_, subtask)
    if found is None:
        raise not_found("this subtask")
    return id_, *found


@router.get("/{subtask}/output")
async def output(request: Request, task_id: str, subtask: str, user: Owner) -> Response:
    """The whole output of a completed subtask, as a file."""
    deps = deps_of(request)
    id_ = await owned(deps, task_id, user)
    # Before it is fetched: a large one may take its time on both ways.
    call_of(request).allow(OUTPUT_TIMEOUT_S)
    content = await output_bytes(deps.backends.primary, deps.backends.blobs, id_, subtask)
    if content is None:
        raise not_found("an output of this subtask")
    # Ids hold nothing that would have to be quoted.
    return json_file(content, f"{subtask}.json")
