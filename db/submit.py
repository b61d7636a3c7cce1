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

from rayloom.dag.errors import Bug, Refused, UserError
from rayloom.dag.order import queue_score
from rayloom.dag.output import sanitise
from rayloom.dag.planned import BEGINS
from rayloom.dag.states import SubtaskStatus, TaskEvent, TaskStatus, move_task
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import DRIVER_ERRORS, driver, dump, is_refusal
from rayloom.db.forks import TakenOver, TakenSubtask, write_taken
from rayloom.db.plan_inputs import KeptInput, keep_inputs
from rayloom.db.plan_rows import (
    ACCEPTED,
    BLOB_COLUMNS,
    EVENT_COLUMNS,
    MODEL_COLUMNS,
    POLICY_COLUMNS,
    SUB_TASK_COLUMNS,
    NewSubtask,
    first_events,
    first_status,
    shape_of_plan,
    write_subtasks,
)
from rayloom.db.queue import Queued
from rayloom.db.task_moves import must_be_splitting


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """Where the end of a task is told, and with what it is signed; ``secret`` is encrypted."""

    url: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task to be written. ``plan`` is None when it has still to be split from ``prompt``.

    ``taken_over``: what a fork does not run anew; something of its plan must be left to run.
    """

    user_id: UUID
    title: str
    prompt: str | None
    priority: int
    context: JsonObject = field(default_factory=dict)
    options: JsonObject = field(default_factory=dict)
    labels: JsonObject = field(default_factory=dict)
    plan: VerifiedPlan | None = None
    require_approval: bool = False
    taken_over: TakenOver | None = None
    deadline_s: float | None = None
    idempotency_key: str | None = None
    fingerprint: bytes = b""
    callback: Callback | None = None
    key_id: UUID | None = None
    """The API key that it came with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task that is on disk. ``replayed``: an earlier request with this key made it. ``queued`` is for the queue."""

    task_id: UUID
    replayed: bool
    queued: tuple[Queued, ...] = ()


async def submit_task(engine: AsyncEngine, blobs: BlobStore, new: NewTask) -> Submitted:
    """Write a task, with its subtasks when its plan is known; their large inputs go into the blob store before.

    Raises Refused (``IDEMPOTENCY_MISMATCH``) when the idempotency key belongs to another request body, UserError
    (``TASK_UNSTORABLE``) when PostgreSQL does not take its data, and Transient when the database or the blob store is
    away.
    """
    taken = frozenset[str]() if new.taken_over is None else new.taken_over.keys
    inputs = () if new.plan is None else await keep_inputs(new.plan, blobs, taken=taken)
    try:
        return await _submit(engine, new, inputs)
    except DRIVER_ERRORS as error:
        if not is_refusal(error):
            raise
        why = str(error).partition("\n")[0][:300]
        raise UserError("TASK_UNSTORABLE", f"the database can't store this task: {why}") from error


async def _submit(engine: AsyncEngine, new: NewTask, inputs: Sequence[KeptInput]) -> Submitted:
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
            "deadline_at, created_at, callback_url, callback_secret, api_key_id) "
            "VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            task_id, new.user_id, new.title, new.prompt, new.priority, dump(new.context), dump(new.options),
            dump(new.labels), deadline_at, now,
            None if new.callback is None else new.callback.url, None if new.callback is None else new.callback.secret,
            new.key_id,
        )  # fmt: skip
        events: list[tuple[Any, ...]] = [(task_id, "task", None, None, TaskStatus.PENDING, "submitted", now)]
        queued: tuple[Queued, ...] = ()
        if new.plan is not None:
            status = move_task(TaskStatus.PENDING, TaskEvent.SPLIT_STARTED)
            await connection.execute(
                "UPDATE tasks SET status = $2, started_at = $3 WHERE id = $1", task_id, status, now
            )
            source, how = ("given", "was given") if new.taken_over is None else ("fork", "is that of another task")
            events.append((task_id, "task", None, TaskStatus.PENDING, status, f"the plan {how}", now))
            target = _Target(
                task_id,
                new.user_id,
                new.priority,
                now,
                inputs,
                hold="asked" * new.require_approval,
                taken_over=new.taken_over,
            )
            queued = await _write_plan(connection, target, new.plan, {"source": source}, events, now)
        await connection.copy_records_to_table("task_events", records=events, columns=EVENT_COLUMNS)
    return Submitted(task_id=task_id, replayed=False, queued=queued)


async def accept_plan(
    engine: AsyncEngine,
    blobs: BlobStore,
    task_id: UUID,
    plan: VerifiedPlan,
    *,
    meta: JsonObject,
    incarnation: UUID,
    hold: str = "",
    replans: int = 0,
    grows: bool = False,
) -> tuple[Queued, ...]:
    """Store the plan of a task that ``incarnation`` is splitting. ``meta``: how the plan was made.

    It is started, unless the task wants approval, or ``hold`` says why it has to have one. ``replans``: how often it
    may grow on account of what it comes to. ``grows``: this is its beginning, not the whole plan: the same incarnation
    adds the rest (`growth`), and until then it is *partial*, and can't be COMPLETED.

    Raises Stale (``TASK_MOVED_ON``) when the task is no longer SPLITTING by that incarnation.
    """
    inputs = await keep_inputs(plan, blobs)
    now = datetime.now(UTC)
    async with driver(engine) as connection, connection.transaction():
        row = await must_be_splitting(connection, task_id, incarnation, TaskEvent.PLAN_ACCEPTED)
        events: list[tuple[Any, ...]] = []
        hold = hold or "asked" * row["is_held"]
        if grows and hold:
            raise Bug("PLAN_HELD", "a plan that waits for approval is whole")
        target = _Target(
            task_id, row["user_id"], row["priority"], row["created_at"], inputs, hold=hold,
            # What somebody has approved is the plan as it was.
            replans=0 if hold else replans,
            grower=incarnation if grows else None,
        )  # fmt: skip
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
    inputs: Sequence[KeptInput]
    """Those of the plan, in its order."""
    hold: str
    """Why the plan waits for approval; empty where it doesn't."""
    taken_over: TakenOver | None = None
    replans: int = 0
    grower: UUID | None = None


async def _write_plan(
    connection: asyncpg.Connection[Any],
    target: _Target,
    plan: VerifiedPlan,
    meta: JsonObject,
    events: list[tuple[Any, ...]],
    now: datetime,
) -> tuple[Queued, ...]:
    """Write the subtasks of a SPLITTING task and bring it to PROCESSING, its roots to QUEUED. Adds to ``events``.

    Where the plan waits for approval the task stays READY, and its subtasks PENDING. What it takes over is written
    COMPLETED, and is waited for no longer.
    """
    ready = move_task(TaskStatus.SPLITTING, TaskEvent.PLAN_ACCEPTED)
    task_id, created_ms = target.task_id, int(target.created_at.timestamp() * 1000)
    ids = [uuid7() for _ in plan.subtasks]
    rows: list[NewSubtask] = []
    over = target.taken_over
    done: frozenset[str] = over.keys if over is not None else frozenset()
    taken: list[TakenSubtask] = []
    queued: list[Queued] = []
    freed_events: list[tuple[Any, ...]] = []
    begins = target.grower is not None
    said = f"{BEGINS} {len(ids)} subtasks" if begins else f"{len(ids)} subtasks, width {plan.width}"
    events.append((task_id, "plan", None, None, None, said, now))
    for subtask, id_, given in zip(plan.subtasks, ids, target.inputs, strict=True):
        spec = subtask.spec
        score = queue_score(priority=target.priority, created_ms=created_ms, rank=subtask.rank)
        dependents = [ids[ordinal] for ordinal in subtask.dependents]
        if over is not None and spec.id in done:
            taken.append(TakenSubtask(id=id_, key=spec.id, dependents=tuple(dependents), score=score))
            # It never was in any other state here.
            reason = f"taken over from task {over.task_id}"
            events.append((task_id, "subtask", spec.id, None, SubtaskStatus.COMPLETED, reason, now))
            continue
        keys: list[str] = [plan.subtasks[ordinal].spec.id for ordinal in subtask.dependencies]
        pending = sum(key not in done for key in keys)
        status = SubtaskStatus.PENDING if target.hold else first_status(subtask, pending=pending)
        new = NewSubtask(
            id=id_, task_id=task_id, user_id=target.user_id, planned=subtask, status=status, keys=keys,
            dependents=dependents, pending=pending, input=given, score=score,
        )  # fmt: skip
        rows.append(new)
        if not target.hold:
            events.append((task_id, "subtask", spec.id, SubtaskStatus.PENDING, ACCEPTED, None, now))
            freed_events += first_events(new, now)
        if status is SubtaskStatus.QUEUED:
            queued.append(new.queued)
    await write_subtasks(connection, rows, now)
    if over is not None:
        await write_taken(
            connection, taken, columns=SUB_TASK_COLUMNS + BLOB_COLUMNS + POLICY_COLUMNS + MODEL_COLUMNS,
            source=over.task_id, task_id=task_id, user_id=target.user_id, now=now,
        )  # fmt: skip
    # In two steps, as the guard sees no way from SPLITTING to PROCESSING but through READY.
    await connection.execute(
        "UPDATE tasks SET status = $2, plan = $3, plan_meta = $4, subtask_count = $5, open_count = $6, "
        "incarnation = NULL, held_at = $7, replans_left = $8 WHERE id = $1",
        task_id, ready, dump(plan.plan.model_dump(mode="json", exclude_unset=True)),
        dump(sanitise(meta | ({"partial": True} if begins else {}) | shape_of_plan(plan))), len(ids), len(rows),
        now if target.hold else None, target.replans,
    )  # fmt: skip
    events.append((task_id, "task", None, TaskStatus.SPLITTING, ready, None, now))
    if target.hold:
        events.append((task_id, "approval", None, TaskStatus.SPLITTING, ready, target.hold, now))
        return ()
    processing = move_task(ready, TaskEvent.STARTED)
    if target.grower is None:
        await connection.execute("UPDATE tasks SET status = $2 WHERE id = $1", task_id, processing)
    else:
        await connection.execute(
            "UPDATE tasks SET status = $2, growth = 'under_way', incarnation = $3, open_count = open_count + 1 "
            "WHERE id = $1",
            task_id,
            processing,
            target.grower,
        )
    events.append((task_id, "task", None, ready, processing, None, now))
    events.extend(freed_events)
    return tuple(queued)
