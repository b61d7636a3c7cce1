"""What is found when a task is ended from outside: what is being stopped, what never began, what is done already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg

from rayloom.dag.log_line import LogLine
from rayloom.dag.states import SubtaskStatus
from rayloom.db import log_lines

NAMED = 100
"""So many of what had completed are named; the others are counted."""
LINES = 1_000
"""Of so many stopped attempts the log has a line each."""
_WAITED = ("PENDING", "READY", "AWAITING_APPROVAL", "QUEUED", "FAILED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """An attempt that is being stopped. ``phase`` is None for one that Ray holds and no worker has begun."""

    sub_task_id: str
    subtask: str
    attempt: int
    status: str
    phase: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """``withdrawn``: how many waited, by status, and never begin. ``completed`` names the first of what was done."""

    stopped: tuple[Stopped, ...] = ()
    withdrawn: Mapping[str, int] = field(default_factory=dict)
    completed_count: int = 0
    completed: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """All of it in a line."""
        waited = ", ".join(f"{count} {status}" for status, count in self.withdrawn.items())
        more = self.completed_count - len(self.completed)
        done = ", ".join(self.completed) + (f" and {more} more" if more else "")
        return (
            f"attempts that are stopped: {len(self.stopped)}; "
            f"withdrawn before they began: {sum(self.withdrawn.values())}{f' ({waited})' if waited else ''}; "
            f"completed before: {self.completed_count}{f' ({done})' if done else ''}"
        )


async def look(connection: asyncpg.Connection[Any], task_id: UUID) -> Halt:
    """What there is of a task whose row is locked: so none of it changes before the task is ended."""
    held = await connection.fetch(
        "SELECT id, key, attempt, status, phase FROM sub_tasks WHERE parent_id = $1 AND incarnation IS NOT NULL "
        "ORDER BY execution_order",
        task_id,
    )
    counts = await connection.fetch(
        "SELECT status, count(*) AS n FROM sub_tasks WHERE parent_id = $1 AND incarnation IS NULL GROUP BY status",
        task_id,
    )
    by_status = {row["status"]: row["n"] for row in counts}
    done = await connection.fetch(
        "SELECT key FROM sub_tasks WHERE parent_id = $1 AND status = 'COMPLETED' ORDER BY execution_order LIMIT $2",
        task_id,
        NAMED,
    )
    return Halt(
        stopped=tuple(
            Stopped(
                sub_task_id=str(row["id"]),
                subtask=row["key"],
                attempt=row["attempt"],
                status=row["status"],
                phase=row["phase"],
            )
            for row in held
        ),
        withdrawn={status: by_status[status] for status in _WAITED if status in by_status},
        completed_count=by_status.get(SubtaskStatus.COMPLETED, 0),
        completed=tuple(row["key"] for row in done),
    )


async def tell(connection: asyncpg.Connection[Any], task_id: UUID, halt: Halt, reason: str) -> None:
    """Write it into the task's log, in the transaction that ends the task."""
    at, task = datetime.now(UTC), str(task_id)
    lines = [LogLine(at=at, task_id=task, message=f"{reason}: {halt.summary}")]
    for one in halt.stopped[:LINES]:
        where = f"in {one.phase}" if one.phase else "before a worker had begun it"
        message = f"attempt {one.attempt} is stopped {where}"
        lines.append(LogLine(at=at, task_id=task, subtask=one.subtask, attempt=one.attempt, message=message))
    await log_lines.append_in(connection, lines)
