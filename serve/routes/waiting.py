"""Why a subtask is not running yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from rayloom.dag.errors import Transient
from rayloom.dag.states import SubtaskStatus
from rayloom.db import waiting
from rayloom.serve.auth import Owner
from rayloom.serve.deps import ask, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import not_found
from rayloom.serve.routes.subtasks import owned
from rayloom.serve.waiting import reasons

router = APIRouter(prefix="/api/v1/tasks/{task_id}/subtasks", tags=["subtasks"])
ASK_TIMEOUT_S: Final = 2.0

T = TypeVar("T")


@router.get("/{subtask}/waiting")
async def why_waiting(request: Request, task_id: str, subtask: str, user: Owner) -> Response:
    """Why a subtask is not running yet: `{status, reasons: [{kind, detail, until}]}`. What does not wait has none."""
    deps = deps_of(request)
    id_ = await owned(deps, task_id, user)
    row = await waiting.look(deps.backends.primary, id_, subtask)
    if row is None:
        raise not_found("this subtask")
    scheduler = limited = breaker = None
    if row.status == SubtaskStatus.QUEUED:
        scheduler, limited = await asyncio.gather(
            _unless_away(deps.ports.scheduler.waiting(str(row.sub_task_id), str(user), row.shape), "the scheduler"),
            _unless_away(deps.ports.tokens.limited(str(user)), "the token controller"),
        )
        if deps.offered.shut_for_s(row.tool, fallback=row.fallback, scope=row.scope) is not None:
            breaker = deps.offered.breaker_of(row.tool)
    found = reasons(row, now=datetime.now(UTC), scheduler=scheduler, limited=limited, breaker=breaker)
    return json_answer({"status": row.status, "reasons": [asdict(reason) for reason in found]})


async def _unless_away(answer: Awaitable[T], whom: str) -> T | None:
    """What the record says is told all the same."""
    try:
        return await ask(answer, whom, timeout_s=ASK_TIMEOUT_S)
    except Transient:
        return None
