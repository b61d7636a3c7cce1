"""List webhooks, and cancel a pending one."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from rayloom.db import webhooks
from rayloom.serve import cursors
from rayloom.serve.auth import Owner
from rayloom.serve.bodies import expect_no_body
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import Problem, not_found
from rayloom.serve.shapes import shown_url

router = APIRouter(prefix="/api/v1/webhooks", tags=["webhooks"])
STATUSES: Final = ("pending", "delivered", "failed", "cancelled")


@router.get("")
async def list_webhooks(
    request: Request,
    user: Owner,
    status: Annotated[list[str] | None, Query(description="one or several, by commas; all if not given")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List webhooks of tasks that have ended, newest first."""
    statuses = cursors.choices("status", status, STATUSES) or STATUSES
    after = cursors.decode_moment("webhooks", cursor)
    rows = await deps_of(request).backends.reads.current(
        lambda source: webhooks.list_webhooks(source, user_id=user, statuses=statuses, after=after, limit=limit + 1)
    )
    more = len(rows) > limit
    next_cursor = cursors.encode_moment("webhooks", rows[limit - 1].at, rows[limit - 1].id) if more else None
    return json_answer({"items": [_webhook(row) for row in rows[:limit]], "next_cursor": next_cursor})


@router.post("/{webhook_id}/cancel")
async def cancel_webhook(request: Request, webhook_id: str, user: Owner) -> Response:
    """Cancel a pending webhook: no further attempt is made."""
    await expect_no_body(request)
    wanted = cursors.uuid_of(webhook_id, "this webhook")
    row = await webhooks.cancel(deps_of(request).backends.primary, wanted, user)
    if row is None:
        raise not_found("this webhook")
    if row.status != "cancelled":
        raise Problem(409, f"the webhook is {row.status}: only a pending one can be cancelled", code="WRONG_STATE")
    return json_answer(_webhook(row))


def _webhook(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "task_id": row.task_id,
        "task_status": row.task_status,
        "url": shown_url(row.callback_url),
        "status": row.status,
        "attempts": row.attempts,
        "next_attempt_at": row.next_at if row.status == "pending" else None,
        "last_error": row.last_error,
        "created_at": row.at,
        "delivered_at": row.delivered_at,
    }
