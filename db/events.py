"""The transitions of a task, read in the order of their ids.

Writers hold the lock of the task's row, so a task's events become visible in that order: who has read up to an id has
missed none before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.states import TASK_TERMINAL
from rayloom.db.reader import reading
from rayloom.db.schema import task_events, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionRow:
    """One row of ``task_events``."""

    id: int
    at: datetime
    kind: Literal["task", "subtask", "plan", "approval"]
    subtask: str | None
    source: str | None
    target: str | None
    phase: str | None
    attempt: int | None
    reason: str | None

    @property
    def ends_task(self) -> bool:
        """Whether the task stood still after it."""
        return self.kind == "task" and self.target in TASK_TERMINAL


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events after an id. ``is_last``: the task has ended, and these are all that there are."""

    events: tuple[TransitionRow, ...]
    is_last: bool


async def after(engine: AsyncEngine, task_id: UUID, last_id: int, *, limit: int) -> EventPage:
    """The next events of a task after ``last_id``."""
    statement = (
        select(task_events)
        .where(task_events.c.task_id == task_id, task_events.c.id > last_id)
        .order_by(task_events.c.id)
        .limit(limit)
    )
    async with reading(engine) as connection:
        # The status first: an end that is seen here was written together with its event, which the second look sees.
        status = await connection.scalar(select(tasks.c.status).where(tasks.c.id == task_id))
        rows = (await connection.execute(statement)).all()
    events = tuple(transition(row) for row in rows)
    of_task = [event for event in events if event.kind == "task"]
    # A task that FAILED may have gone on between the two looks.
    ended = status in TASK_TERMINAL and (not of_task or of_task[-1].ends_task)
    return EventPage(events=events, is_last=ended and len(events) < limit)


def transition(row: object) -> TransitionRow:
    """A row of ``task_events`` as a value."""
    fields = row._mapping  # type: ignore[attr-defined]
    return TransitionRow(
        id=fields["id"],
        at=fields["at"],
        kind=fields["kind"],
        subtask=fields["subtask"],
        source=fields["from_status"],
        target=fields["to_status"],
        phase=fields["phase"],
        attempt=fields["attempt"],
        reason=fields["reason"],
    )
