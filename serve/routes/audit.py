"""The audit: who called which tool, when, with what, and how it ended."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rayloom.db.audit import AuditedCall, AuditFilter, Position, read_calls
from rayloom.db.reader import ReadSource
from rayloom.serve import cursors
from rayloom.serve.auth import Admin
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import deps_of
from rayloom.serve.json_answer import json_answer

router = APIRouter(prefix="/api/v1/audit", tags=["people"])

_Word = Annotated[str | None, Query(min_length=1, max_length=300)]


@router.get("")
async def audit(
    request: Request,
    me: Admin,
    user_id: Annotated[str | None, Query(description="only calls of this user")] = None,
    key_id: Annotated[str | None, Query(description="only calls of tasks that were submitted with this key")] = None,
    task_id: Annotated[str | None, Query(description="only calls of this task")] = None,
    tool: _Word = None,
    created_after: str | None = None,
    created_before: str | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Calls of tools in attempts that have ended, newest first (admin)."""
    wanted = AuditFilter(
        user_id=cursors.uuid_in("/query/user_id", user_id),
        key_id=cursors.uuid_in("/query/key_id", key_id),
        task_id=cursors.uuid_in("/query/task_id", task_id),
        tool=tool,
        since=cursors.moment("created_after", created_after),
        until=cursors.moment("created_before", created_before),
    )
    after = _position(cursor)

    async def read(source: ReadSource) -> list[AuditedCall]:
        return await read_calls(source, wanted, after=after, limit=limit + 1)

    calls = await deps_of(request).backends.reads.current(read)
    page = calls[:limit]
    next_cursor = _cursor(page[-1]) if len(calls) > limit else None
    return json_answer({"items": [_shown(call) for call in page], "next_cursor": next_cursor})


def _cursor(call: AuditedCall) -> str:
    return cursors.encode("audit", cursors.encode_moment("audit", call.at, call.sub_task_id), call.attempt, call.place)


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    moment, attempt, place = cursors.decode("audit", cursor, (str, int, int))
    found = cursors.decode_moment("audit", str(moment))
    assert found is not None
    return *found, max(0, min(int(attempt), 2**31 - 1)), max(0, min(int(place), 2**31 - 1))


def _shown(call: AuditedCall) -> dict[str, Any]:
    return {
        "at": call.at,
        "user_id": call.user_id,
        "user": call.user,
        "key_id": call.key_id,
        "task_id": call.task_id,
        "subtask": call.subtask,
        "sub_task_id": call.sub_task_id,
        "attempt": call.attempt,
        "tool": call.tool,
        "version": call.version,
        "input_sha256": call.input_sha256,
        "called": call.called,
        "outcome": call.outcome,
        "code": call.code,
        "duration_ms": call.duration_ms,
        "worker_id": call.worker_id,
    }
