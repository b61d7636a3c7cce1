"""Decisions on what waits for approval: a plan, or subtasks. Each is one guarded statement, so one decision counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.output import clean_text
from rayloom.dag.states import SubtaskEvent, TaskEvent, TaskStatus
from rayloom.db.attempts import INLINE_BYTES, Committed, committed_of, queued_of
from rayloom.db.engine import driver
from rayloom.db.queue import Queued
from rayloom.db.refusals import tell_refusal

EXPIRED = "expired: nobody approved it in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What a decision changed. ``plan``: it was the plan's; else ``subtasks`` are those that it was about.

    Where nothing was waiting, ``refused_status`` is the status of what was named; ``is_unknown``: there is no such
    subtask; not ``found``: there is no such task.
    """

    found: bool
    plan: bool = False
    subtasks: tuple[str, ...] = ()
    status: str | None = None
    refused_status: str | None = None
    is_unknown: bool = False
    queued: tuple[Queued, ...] = ()


async def approve(engine: AsyncEngine, task_id: UUID, *, subtask: str | None, reason: str) -> Decided:
    """Let what waits go on: the plan of a READY task, or the subtask, or all that wait. ``reason``: who says so."""
    async with driver(engine) as connection:
        rows = await connection.fetch("SELECT * FROM approve_task($1, $2, $3)", task_id, subtask, clean_text(reason))
    return _decided(rows, task_id, subtask, is_approval=True)


async def reject(
    engine: AsyncEngine, task_id: UUID, *, subtask: str | None, reason: str, plan_ttl_s: float | None = None
) -> Decided:
    """Refuse what waits: a READY task becomes CANCELLED, subtasks BLOCKED. ``reason``: who says so, and why.

    ``plan_ttl_s``: only a plan that still waits, and has for longer.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM reject_task($1, $2, $3, $4, $5)",
            task_id,
            subtask,
            clean_text(reason),
            INLINE_BYTES,
            plan_ttl_s,
        )
    return _decided(rows, task_id, subtask, is_approval=False)


async def expire(engine: AsyncEngine, *, ttl_s: float, limit: int = 500) -> Committed:
    """Refuse subtasks that have waited longer than ``ttl_s`` seconds, at most ``limit`` of them."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM expire_approvals($1, $2, $3, $4)", ttl_s, EXPIRED, limit, INLINE_BYTES
        )
    return committed_of(rows)


async def expired_plans(engine: AsyncEngine, *, ttl_s: float, limit: int = 100) -> tuple[UUID, ...]:
    """Tasks whose plan has waited longer than ``ttl_s`` seconds."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id FROM tasks WHERE held_at <= now() - make_interval(secs => $1) ORDER BY held_at LIMIT $2",
            ttl_s,
            limit,
        )
    return tuple(row["id"] for row in rows)


def _decided(rows: Sequence[asyncpg.Record], task_id: UUID, subtask: str | None, *, is_approval: bool) -> Decided:
    refused = next((row for row in rows if row["what"] in ("refused", "unknown")), None)
    if refused is not None:
        event: SubtaskEvent | TaskEvent = SubtaskEvent.APPROVED if is_approval else SubtaskEvent.REJECTED
        if subtask is None:
            event = TaskEvent.STARTED if is_approval else TaskEvent.REJECTED
        tell_refusal(event, source=refused["detail"], task_id=task_id, subtask=subtask)
        return Decided(found=True, refused_status=refused["detail"], is_unknown=refused["what"] == "unknown")
    decided = [row for row in rows if row["what"] == "decided"]
    closed = next((row["detail"] for row in rows if row["what"] == "closed"), None)
    return Decided(
        found=bool(rows),
        plan=any(row["sub_task_id"] is None for row in decided),
        subtasks=tuple(row["detail"] for row in decided if row["sub_task_id"] is not None),
        status=closed or (TaskStatus.PROCESSING if rows else None),
        queued=queued_of(rows),
    )
