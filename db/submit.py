"""Writing a task down: its row, its plan, its first events, in one transaction. After it nothing can lose it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.order import queue_score
from rayloom.dag.states import SubtaskEvent, SubtaskStatus, TaskEvent, TaskStatus, move_subtask, move_task
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verify import VerifiedPlan
from rayloom.db.engine import DRIVER_ERRORS, driver, dump, dump_sorted, is_refusal
from rayloom.db.queue import Queued
from rayloom.db.task_moves import must_be_splitting


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task to be written. ``plan`` is None when it has still to be split from ``prompt``."""

    user_id: UUID
    title: str
    prompt: str | None
    priority: int
    context: JsonObject = field(default_factory=dict)
    options: JsonObject = field(default_factory=dict)
    labels: JsonObject = field(default_factory=dict)
    plan: VerifiedPlan | None = None
    deadline_s: float | None = None
    idempotency_key: str | None = None
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task that is on disk. ``replayed``: an earlier request with this key made it. ``queued`` is for the queue."""

    task_id: UUID
    replayed: bool
    queued: tuple[Queued, ...] = ()


SUB_TASK_COLUMNS = (
    "id", "parent_id", "user_id", "key", "name", "task_type", "status", "execution_order", "dependencies", "dependents",
    "pending_dependencies", "tool", "input_context", "referred", "timeout_s", "max_retries", "resources", "shape",
    "score", "created_at", "queued_at",
)  # fmt: skip
EVENT_COLUMNS = ("task_id", "kind", "subtask", "from_status", "to_status", "reason", "at")


async def submit_task(engine: AsyncEngine, new: NewTask) -> Submitted:
    """Write a task, with its subtasks when its plan is known.

    Raises Refused (``IDEMPOTENCY_MISMATCH``) when the idempotency key belongs to another request body, UserError
    (``TASK_UNSTORABLE``) when PostgreSQL does not take its data, and Transient when the database is away.
    """
    try:
        return await _submit(engine, new)
    except DRIVER_ERRORS as error:
        if not is_refusal(error):
            raise
        why = str(error).partition("\n")[0][:300]
        raise UserError("TASK_UNSTORABLE", f"the database can't store this task: {why}") from error


async def _submit(engine: AsyncEngine, new: NewTask) -> Submitted:
    task_id = uuid7()
    now = datetime.now(UTC)
    async with driver(engine) as connection, connection.transaction():
        if new.idempotency_key is not None:
            # Waits for an equal request that is being written right now, then finds its row.
            made = await connection.fetchval(
                "INSERT INTO idempotency_keys (user_id, key, fingerprint, task_id) VALUES ($1, $2, $3, $4) "
                "ON CONFLICT DO NOTHING RETURNING task_id",
                new.user_id, new.idempotency_key, new.fingerprint, task_id,
            )  # fmt: skip
            if made is None:
                return await _replay(connection, new)
        deadline_at = None if new.deadline_s is None else now + timedelta(seconds=new.deadline_s)
        await connection.execute(
            "INSERT INTO tasks (id, user_id, title, original_prompt, status, priority, context, options, labels, "
            "deadline_at, created_at) VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, $7, $8, $9, $10)",
            task_id, new.user_id, new.title, new.prompt, new.priority, dump(new.context), dump(new.options),
            dump(new.labels), deadline_at, now,
        )  # fmt: skip
        events: list[tuple[Any, ...]] = [(task_id, "task", None, None, TaskStatus.PENDING, "submitted", now)]
        queued: tuple[Queued, ...] = ()
        if new.plan is not None:
            status = move_task(TaskStatus.PENDING, TaskEvent.SPLIT_STARTED)
            await connection.execute(
                "UPDATE tasks SET status = $2, started_at = $3 WHERE id = $1", task_id, status, now
            )
            events.append((task_id, "task", None, TaskStatus.PENDING, status, "the plan was given", now))
            target = _Target(task_id, new.user_id, new.priority, now)
            queued = await _write_plan(connection, target, new.plan, {"source": "given"}, events, now)
        await connection.copy_records_to_table("task_events", records=events, columns=EVENT_COLUMNS)
    return Submitted(task_id=task_id, replayed=False, queued=queued)


async def accept_plan(
    engine: AsyncEngine, task_id: UUID, plan: VerifiedPlan, *, meta: JsonObject, incarnation: UUID
) -> tuple[Queued, ...]:
    """Store the plan of a task that ``incarnation`` is splitting, and start it. ``meta``: how the plan was made.

    Raises Stale (``TASK_MOVED_ON``) when the task is no longer SPLITTING by that incarnation.
    """
    now = datetime.now(UTC)
    async with driver(engine) as connection, connection.transaction():
        row = await must_be_splitting(connection, task_id, incarnation, TaskEvent.PLAN_ACCEPTED)
        events: list[tuple[Any, ...]] = []
        target = _Target(task_id, row["user_id"], row["priority"], row["created_at"])
        queued = await _write_plan(connection, target, plan, meta, events, now)
        await connection.copy_records_to_table("task_events", records=events, columns=EVENT_COLUMNS)
    return queued


async def _replay(connection: asyncpg.Connection[Any], new: NewTask) -> Submitted:
    row = await connection.fetchrow(
        "SELECT fingerprint, task_id FROM idempotency_keys WHERE user_id = $1 AND key = $2",
        new.user_id,
        new.idempotency_key,
    )
    if row is None or row["fingerprint"] != new.fingerprint:
        raise Refused("IDEMPOTENCY_MISMATCH", "this Idempotency-Key was used with another request body")
    return Submitted(task_id=row["task_id"], replayed=True)


@dataclass(frozen=True, slots=True)
class _Target:
    task_id: UUID
    user_id: UUID
    priority: int
    created_at: datetime


async def _write_plan(
    connection: asyncpg.Connection[Any],
    target: _Target,
    plan: VerifiedPlan,
    meta: JsonObject,
    events: list[tuple[Any, ...]],
    now: datetime,
) -> tuple[Queued, ...]:
    """Write the subtasks of a SPLITTING task and bring it to PROCESSING, its roots to QUEUED. Adds to ``events``."""
    ready = move_task(TaskStatus.SPLITTING, TaskEvent.PLAN_ACCEPTED)
    processing = move_task(ready, TaskEvent.STARTED)
    accepted = move_subtask(SubtaskStatus.PENDING, SubtaskEvent.ACCEPTED)
    freed = move_subtask(accepted, SubtaskEvent.FREED)
    task_id, created_ms = target.task_id, int(target.created_at.timestamp() * 1000)
    ids = [uuid7() for _ in plan.subtasks]
    rows: list[tuple[Any, ...]] = []
    queued: list[Queued] = []
    freed_events: list[tuple[Any, ...]] = []
    events.append((task_id, "plan", None, None, None, f"{len(ids)} subtasks, width {plan.width}", now))
    for subtask, id_ in zip(plan.subtasks, ids, strict=True):
        spec, is_root = subtask.spec, not subtask.dependencies
        shape = dump_sorted(subtask.shape.as_json())
        score = queue_score(priority=target.priority, created_ms=created_ms, rank=subtask.rank)
        keys: Sequence[Json] = [plan.subtasks[ordinal].spec.id for ordinal in subtask.dependencies]
        rows.append((
            id_, task_id, target.user_id, spec.id, spec.name or spec.id, spec.type, freed if is_root else accepted,
            subtask.ordinal, dump(keys), [ids[ordinal] for ordinal in subtask.dependents], len(subtask.dependencies),
            subtask.tool, dump(spec.input), list(subtask.references), spec.timeout_s, spec.max_retries,
            shape, shape, score, now, now if is_root else None,
        ))  # fmt: skip
        events.append((task_id, "subtask", spec.id, SubtaskStatus.PENDING, accepted, None, now))
        if is_root:
            freed_events.append((task_id, "subtask", spec.id, accepted, freed, None, now))
            queued.append(Queued(str(id_), str(target.user_id), shape, score))
    await connection.copy_records_to_table("sub_tasks", records=rows, columns=SUB_TASK_COLUMNS)
    # In two steps, as the guard sees no way from SPLITTING to PROCESSING but through READY.
    await connection.execute("UPDATE tasks SET status = $2 WHERE id = $1", task_id, ready)
    await connection.execute(
        "UPDATE tasks SET status = $2, plan = $3, plan_meta = $4, subtask_count = $5, open_count = $5, "
        "incarnation = NULL WHERE id = $1",
        task_id, processing, dump(plan.plan.model_dump(mode="json", exclude_unset=True)),
        dump(meta | {"width": plan.width, "critical_path": list(plan.critical_path)}), len(ids),
    )  # fmt: skip
    events.append((task_id, "task", None, TaskStatus.SPLITTING, ready, None, now))
    events.append((task_id, "task", None, ready, processing, None, now))
    events.extend(freed_events)
    return tuple(queued)
