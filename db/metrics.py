"""Counts for monitoring: cheap enough to be asked for every few seconds over a million subtasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Integer, and_, cast, func, literal, select, union_all

from rayloom.dag.states import TaskStatus
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import schedulers, sub_tasks, tasks

SCHEDULER_SILENCE_S: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tasks by status; subtasks that wait, run, or need a person, by status; how many are settled."""

    tasks: Mapping[str, int]
    subtasks: Mapping[str, int]
    settled: int
    schedulers: int


async def read_counts(source: ReadSource) -> Counts:
    """Everything counted now. Raises Transient when the database is away."""
    # A plan that grows is one more that is open.
    settled = tasks.c.subtask_count - tasks.c.open_count + cast(tasks.c.growth.is_not(None), Integer)
    by_status = select(tasks.c.status, func.count(), func.coalesce(func.sum(settled), 0)).group_by(tasks.c.status)
    # Each condition is that of a partial index: the settled rows, which are nearly all, are never looked at.
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
        rows = (await connection.execute(by_status)).all()
        parts = {row.name: row.n for row in await connection.execute(by_part)}
        live = await connection.scalar(alive)
    found = {row[0]: row[1] for row in rows}
    # Handed to Ray or not, both are QUEUED to everybody outside.
    parts["QUEUED"] += parts.pop("QUEUED_IN_RAY")
    return Counts(
        tasks={status.value: found.get(status, 0) for status in TaskStatus},
        subtasks=parts,
        settled=sum(int(row[2]) for row in rows),
        schedulers=live or 0,
    )
