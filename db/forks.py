"""Forks: a new task that takes over what another one has completed.

Outputs are copied inside the database; those that are kept apart are shared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Stale
from rayloom.dag.plan import subtasks_of
from rayloom.dag.values import JsonObject
from rayloom.db.reader import reading
from rayloom.db.schema import sub_tasks, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """What a new task takes over: these subtasks, by their ids in the plan, of this task. They are COMPLETED there."""

    task_id: UUID
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSubtask:
    """The row of a subtask that is taken over, as far as it is another one than the original's."""

    id: UUID
    key: str
    dependents: tuple[UUID, ...]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """A task with its plan, as one needs it to run some of it anew.

    ``plan`` is None while there is none, and where it never became whole. What the plan went around when it grew, or
    does without although it had begun, is not in it.
    """

    status: str
    title: str
    prompt: str | None
    priority: int
    context: JsonObject
    options: JsonObject
    labels: JsonObject
    plan: JsonObject | None
    statuses: dict[str, str]
    """By the ids of the plan."""
    dependencies: dict[str, tuple[str, ...]]


async def stored_plan(engine: AsyncEngine, task_id: UUID, user_id: UUID) -> StoredPlan | None:
    """A user's task with its plan, all of one moment; None when there is no such task."""
    statement = select(
        tasks.c.status, tasks.c.title, tasks.c.original_prompt, tasks.c.priority, tasks.c.context, tasks.c.options,
        tasks.c.labels, tasks.c.plan, tasks.c.plan_meta["partial"].is_not(None).label("is_partial"),
    ).where(tasks.c.id == task_id, tasks.c.user_id == user_id)  # fmt: skip
    async with reading(engine) as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return None
        of_task = select(sub_tasks.c.key, sub_tasks.c.status, sub_tasks.c.dependencies, sub_tasks.c.superseded)
        found = (await connection.execute(of_task.where(sub_tasks.c.parent_id == task_id))).all()
    superseded = {subtask.key for subtask in found if subtask.superseded}
    subtasks = [subtask for subtask in found if not subtask.superseded]
    return StoredPlan(
        status=row.status,
        title=row.title,
        prompt=row.original_prompt,
        priority=row.priority,
        context=row.context,
        options=row.options,
        labels=row.labels,
        plan=None if row.is_partial else _without(row.plan, superseded),
        statuses={subtask.key: subtask.status for subtask in subtasks},
        dependencies={subtask.key: tuple(subtask.dependencies) for subtask in subtasks},
    )


def _without(plan: JsonObject | None, keys: Collection[str]) -> JsonObject | None:
    if plan is None or not keys:
        return plan
    return {**plan, "subtasks": [subtask for subtask in subtasks_of(plan) if subtask["id"] not in keys]}


# What a taken subtask has of its own; everything else is as in the original.
_OWN: Final = {
    "id": "n.id",
    "parent_id": "$2",
    "user_id": "$3",
    "status": "'COMPLETED'",
    "dependents": "n.dependents::uuid[]",
    "pending_dependencies": "0",
    "score": "n.score",
    "created_at": "$4",
    "queued_at": "NULL",
    "held_at": "NULL",
    "finished_at": "$4",
    "output_result": "o.output_result",
    "output_blob": "o.output_blob",
    "output_size": "o.output_size",
    "output_sha256": "o.output_sha256",
}


async def write_taken(
    connection: asyncpg.Connection[Any],
    taken: Sequence[TakenSubtask],
    *,
    columns: Sequence[str],
    source: UUID,
    task_id: UUID,
    user_id: UUID,
    now: datetime,
) -> None:
    """Write the rows of taken subtasks, COMPLETED, and share the files of the original's workspace.

    ``columns`` are those that a new subtask is written with. Raises Stale (``TASK_MOVED_ON``) when the original is no
    longer what it was.
    """
    names = list(dict.fromkeys([*columns, *_OWN]))
    values = [_OWN.get(name, f"o.{name}") for name in names]
    written = await connection.execute(
        f"INSERT INTO sub_tasks ({', '.join(names)}) SELECT {', '.join(values)} "
        "FROM unnest($5::uuid[], $6::text[], $7::text[], $8::float8[]) AS n (id, key, dependents, score) "
        "JOIN sub_tasks o ON o.parent_id = $1 AND o.key = n.key AND o.status = 'COMPLETED' AND o.user_id = $3",
        source, task_id, user_id, now,
        [one.id for one in taken], [one.key for one in taken],
        ["{" + ",".join(map(str, one.dependents)) + "}" for one in taken], [one.score for one in taken],
    )  # fmt: skip
    if written != f"INSERT 0 {len(taken)}":
        raise Stale("TASK_MOVED_ON", "the task that is forked is no longer what it was")
    await connection.execute(
        "INSERT INTO task_files (task_id, path, sha256, size, media_type, updated_at) "
        "SELECT $2, path, sha256, size, media_type, updated_at FROM task_files WHERE task_id = $1",
        source,
        task_id,
    )
