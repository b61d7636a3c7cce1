"""What a task's trace is made of: the task, its transitions, its attempts with their spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import select

from rayloom.db.events import TransitionRow, transition
from rayloom.db.reader import ReadSource, reading
from rayloom.db.reads import Record
from rayloom.db.schema import execution_logs, sub_tasks, task_events, tasks
from rayloom.db.schema_calls import model_calls, model_tokens

MAX_ATTEMPTS: Final = 20_000
"""A trace shows so many attempts; of a larger task the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRows:
    """One task as the database has it. ``running``: subtasks whose attempt has not ended.

    ``calls``: of models, to plan it, as the ledger has them: also where no plan came of it.
    """

    task: Record
    transitions: Sequence[TransitionRow]
    attempts: Sequence[Record]
    running: Sequence[Record]
    is_truncated: bool
    calls: Sequence[Record] = ()


async def read_trace(source: ReadSource, task_id: UUID, user_id: UUID) -> TraceRows | None:
    """Everything of a user's task that its trace shows, as of one moment; None when there is no such task."""
    task = select(
        tasks.c.id, tasks.c.title, tasks.c.status, tasks.c.priority, tasks.c.plan_meta, tasks.c.subtask_count,
        tasks.c.created_at, tasks.c.started_at, tasks.c.finished_at,
    ).where(tasks.c.id == task_id, tasks.c.user_id == user_id)  # fmt: skip
    transitions = (
        select(task_events)
        .where(task_events.c.task_id == task_id, task_events.c.kind != "subtask")
        .order_by(task_events.c.id)
    )
    log = execution_logs.c
    attempts = (
        select(
            log.sub_task_id, log.attempt, log.status, log.queued_at, log.start_time, log.end_time,
            (log.tokens_used + model_tokens()).label("tokens_used"),
            log.error, log.spans, log.worker_id, log.node_id, log.ray_task_id,
            sub_tasks.c.key, sub_tasks.c.tool, sub_tasks.c.task_type, sub_tasks.c.fallback_tool,
            sub_tasks.c.fallback_attempts,
        )
        .join(sub_tasks, sub_tasks.c.id == log.sub_task_id)
        .where(log.task_id == task_id)
        .order_by(log.start_time, log.sub_task_id, log.attempt)
        .limit(MAX_ATTEMPTS + 1)
    )  # fmt: skip
    running = select(
        sub_tasks.c.id, sub_tasks.c.key, sub_tasks.c.tool, sub_tasks.c.task_type, sub_tasks.c.attempt,
        sub_tasks.c.phase, sub_tasks.c.queued_at, sub_tasks.c.started_at, sub_tasks.c.worker_id,
        sub_tasks.c.ray_task_id, sub_tasks.c.fallback_tool, sub_tasks.c.fallback_attempts,
    ).where(sub_tasks.c.parent_id == task_id, sub_tasks.c.status == "RUNNING")  # fmt: skip
    calls = (
        select(
            model_calls.c.id, model_calls.c.model, model_calls.c.purpose, model_calls.c.tokens_in,
            model_calls.c.tokens_out, model_calls.c.cost_usd, model_calls.c.is_estimated, model_calls.c.status,
            model_calls.c.reserved_at, model_calls.c.settled_at,
        )
        .where(model_calls.c.task_id == task_id, model_calls.c.sub_task_id.is_(None))
        .order_by(model_calls.c.reserved_at)
        .limit(MAX_ATTEMPTS)
    )  # fmt: skip
    async with reading(source) as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        found = (await connection.execute(task)).one_or_none()
        if found is None:
            return None
        told = (await connection.execute(transitions)).all()
        ended = (await connection.execute(attempts)).all()
        asked = (await connection.execute(calls)).all()
        open_ = (await connection.execute(running.limit(MAX_ATTEMPTS))).all()
    return TraceRows(
        task=found,
        transitions=[transition(row) for row in told],
        attempts=ended[:MAX_ATTEMPTS],
        running=open_,
        is_truncated=len(ended) > MAX_ATTEMPTS,
        calls=asked,
    )
