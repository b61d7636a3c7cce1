"""Approve or reject what waits for a person: a plan, or subtasks."""

from __future__ import annotations

import logging
from typing import Annotated, Final

from fastapi import APIRouter, Request
from pydantic import StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.db import approvals, reads
from rayloom.db.approvals import Decided
from rayloom.serve import cursors
from rayloom.serve.auth import Me, Owner
from rayloom.serve.bodies import Body, read_body, read_optional, schema_of
from rayloom.serve.deps import Deps, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import Problem, invalid, not_found
from rayloom.serve.routes.tasks import wake

log = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1/tasks", tags=["approval"])
MAX_REASON_CHARS: Final = 1000

_SubtaskName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ApproveBody(Body):
    """The body of ``POST /api/v1/tasks/{id}/approve``; an empty one means all that waits."""

    subtask: _SubtaskName | None = None


class RejectBody(Body):
    """The body of ``POST /api/v1/tasks/{id}/reject``."""

    subtask: _SubtaskName | None = None
    reason: Annotated[str, StringConstraints(min_length=1, max_length=MAX_REASON_CHARS)]


@router.post("/{task_id}/approve", openapi_extra=schema_of(ApproveBody, required=False))
async def approve(request: Request, task_id: str, me: Me, user: Owner) -> Response:
    """Approve a subtask that waits; without `subtask`, the plan of a READY task, else every subtask that waits now."""
    deps = deps_of(request)
    body = await read_optional(request, ApproveBody)
    id_ = cursors.uuid_of(task_id, "this task")
    if await reads.task_status(deps.backends.primary, id_, user) is None:
        raise not_found("this task")
    reason = f"approved by {me.user}"
    decided = await approvals.approve(deps.backends.primary, id_, subtask=body.subtask, reason=reason)
    return await _answer(deps, str(id_), decided, "approved", body.subtask)


@router.post("/{task_id}/reject", openapi_extra=schema_of(RejectBody))
async def reject(request: Request, task_id: str, me: Me, user: Owner) -> Response:
    """Reject what `approve` would approve: a task whose plan is rejected is CANCELLED, a subtask BLOCKED."""
    deps = deps_of(request)
    body = await read_body(request, RejectBody)
    if not body.reason.strip():
        raise invalid([Fault("/reason", "is blank")])
    id_ = cursors.uuid_of(task_id, "this task")
    if await reads.task_status(deps.backends.primary, id_, user) is None:
        raise not_found("this task")
    reason = f"rejected by {me.user}: {body.reason}"
    decided = await approvals.reject(deps.backends.primary, id_, subtask=body.subtask, reason=reason)
    return await _answer(deps, str(id_), decided, "rejected", body.subtask)


async def _answer(deps: Deps, task_id: str, decided: Decided, verb: str, subtask: str | None) -> Response:
    """What became of a decision. Raises Problem where there was nothing to decide."""
    if not decided.found:
        raise not_found("this task")
    if decided.is_unknown:
        raise invalid([Fault("/subtask", f"the task has no subtask `{subtask}`")])
    if decided.refused_status is not None:
        raise Problem(409, _why_not(decided.refused_status, subtask), code="NOTHING_WAITS")
    log.info("approval.decided", extra={"task_id": task_id, "decision": verb, "subtasks": len(decided.subtasks)})
    if not await deps.backends.offer(decided.queued, task_id) and decided.queued:
        await wake(deps)
    return json_answer(
        {
            "task_id": task_id,
            "status": decided.status,
            "decision": verb,
            "plan": decided.plan,
            "subtasks": list(decided.subtasks),
        }
    )


def _why_not(status: str, subtask: str | None) -> str:
    if subtask is None:
        return f"nothing of this task waits for approval: it is {status}"
    whose = "the plan waits for approval, and its subtasks with it" if status == "PENDING" else f"it is {status}"
    return f"the subtask `{subtask}` does not wait for approval: {whose}"
