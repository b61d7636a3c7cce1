"""Counts for monitoring. None of them reads more than what is unfinished: old tasks make them no slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import and_, func, literal, select, text, union_all
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.states import TASK_TERMINAL, TaskStatus
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import LIVE_TASK, schedulers, sub_tasks, tasks

SCHEDULER_SILENCE_S: Final = 10
LIVE: Final = tuple(status.value for status in TaskStatus if status not in TASK_TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Unfinished tasks by status; subtasks that wait, run, or need a person, by status; live schedulers."""

    tasks: Mapping[str, int]
    subtasks: Mapping[str, int]
    schedulers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Rows that PostgreSQL has counted as they came in, also those of transactions that were rolled back."""

    tasks: int
    attempts: int


async def read_counts(source: ReadSource) -> Counts:
    """Count what is there now. Raises Transient when the database is away."""
    # Each condition is that of a partial index: finished rows, which are nearly all, are never looked at.
    by_status = select(tasks.c.status, func.count()).where(text(LIVE_TASK)).group_by(tasks.c.status)
    waiting = and_(sub_tasks.c.status == "QUEUED", sub_tasks.c.incarnation.is_(None))
    handed_over = and_(sub_tasks.c.status == "QUEUED", sub_tasks.c.incarnation.is_not(None))
    running = and_(sub_tasks.c.status == "RUNNING", sub_tasks.c.incarnation.is_not(None))
    conditions = {
        "QUEUED": waiting,
        "QUEUED_IN_RAY": handed_over,
        "RUNNING": running,
        "FAILED": sub_tasks.c.status == "FAILED",
        "BLOCKED": sub_tasks.c.status == "BLOCKED",
    }
    by_part = union_all(
        *(
            select(literal(name).label("name"), func.count().label("n")).select_from(sub_tasks).where(condition)
            for name, condition in conditions.items()
        )
    )
    alive = (
        select(func.count())
        .select_from(schedulers)
        .where(
            schedulers.c.ended_at.is_(None),
            schedulers.c.heartbeat_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, SCHEDULER_SILENCE_S),
        )
    )
    async with reading(source) as connection:
        found: dict[str, int] = {row[0]: row[1] for row in await connection.execute(by_status)}
        parts = {row.name: row.n for row in await connection.execute(by_part)}
        live = await connection.scalar(alive)
    # Handed to Ray or not, both are QUEUED to everybody outside.
    parts["QUEUED"] += parts.pop("QUEUED_IN_RAY")
    return Counts(tasks={status: found.get(status, 0) for status in LIVE}, subtasks=parts, schedulers=live or 0)


async def read_totals(primary: AsyncEngine) -> Totals:
    """Read PostgreSQL's own counters, which a replica does not have. Raises Transient when the database is away."""
    statement = select(
        *(func.pg_stat_get_tuples_inserted(text(f"'{name}'::regclass")) for name in ("tasks", "execution_logs"))
    )
    async with reading(primary) as connection:
        row = (await connection.execute(statement)).one()
    return Totals(tasks=row[0] or 0, attempts=row[1] or 0)
