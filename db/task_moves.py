"""What happens to whole tasks: taken for splitting, ended from outside, overdue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import ErrorInfo, Stale
from rayloom.dag.output import clean_text
from rayloom.dag.values import JsonObject
from rayloom.db.engine import driver, dump_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that was ended from outside. ``refused_status`` is set when it was too late: the status it has."""

    found: bool
    refused_status: str | None = None
    stopped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskToSplit:
    """A task that has been taken for splitting."""

    task_id: UUID
    user_id: UUID
    prompt: str
    context: JsonObject
    options: JsonObject


async def end_task(
    engine: AsyncEngine,
    task_id: UUID,
    *,
    status: Literal["CANCELLED", "FAILED"],
    error: ErrorInfo | None,
    reason: str,
    splitter: UUID | None = None,
) -> Ended:
    """End a task from outside: cancelled by its user, or failed by its deadline or its splitting.

    ``splitter``: end it only while this incarnation is splitting it. Raises Stale (``TASK_MOVED_ON``) when it is not.
    """
    async with driver(engine) as connection, connection.transaction():
        if splitter is not None and not await connection.fetchval(
            "SELECT true FROM tasks WHERE id = $1 AND status = 'SPLITTING' AND incarnation = $2 FOR NO KEY UPDATE",
            task_id,
            splitter,
        ):
            raise Stale("TASK_MOVED_ON", "the task is no longer being split here")
        rows = await connection.fetch(
            "SELECT * FROM end_task($1, $2, $3, $4)",
            task_id,
            status,
            None if error is None else dump_error(error),
            clean_text(reason),
        )
    refused = next((row["detail"] for row in rows if row["what"] == "refused"), None)
    stopped = tuple((str(row["sub_task_id"]), int(row["detail"])) for row in rows if row["what"] == "stopped")
    return Ended(found=bool(rows), refused_status=refused, stopped=stopped)


async def expired_tasks(engine: AsyncEngine, *, limit: int = 100) -> tuple[UUID, ...]:
    """Live tasks whose deadline has passed."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id FROM tasks "
            "WHERE deadline_at <= now() AND status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING') "
            "AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT $1",
            limit,
        )
    return tuple(row["id"] for row in rows)


async def claim_tasks(
    engine: AsyncEngine,
    *,
    incarnation: UUID,
    dead: Sequence[UUID],
    limit: int,
    busy: Sequence[UUID] | None = None,
) -> tuple[TaskToSplit, ...]:
    """Take PENDING tasks for splitting, and those whose splitter died.

    ``busy``: what this incarnation is splitting; whatever else is marked as taken by it never reached it.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, user_id, original_prompt, context, options FROM claim_tasks($1, $2, $3, $4::uuid[])",
            limit,
            incarnation,
            list(dead),
            None if busy is None else list(busy),
        )
    return tuple(
        TaskToSplit(
            task_id=row["id"],
            user_id=row["user_id"],
            prompt=row["original_prompt"] or "",
            context=row["context"],
            options=row["options"],
        )
        for row in rows
    )
