"""What the API shows of tasks and subtasks: lists, details, progress, outputs. Every read names the owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Final, TypeAlias
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    case,
    cast,
    func,
    null,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.dag.states import SubtaskStatus
from rayloom.db import webhooks
from rayloom.db.attempts import INLINE_BYTES
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import execution_logs, idempotency_keys, sub_tasks, tasks
from rayloom.db.schema_calls import model_tokens

MISSING_SHOWN: Final = 1000
"""Details name at most so many of the subtasks that a task goes on without."""
PAGE_INLINE_BYTES: Final = 32 * 1024 * 1024
"""A page of subtasks holds at most so many bytes of inline outputs; it ends before the subtask that goes beyond."""

Record: TypeAlias = Any
"""A row of a statement of ours; its columns are attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks to list. ``text`` is looked for in title and prompt, whatever its case."""

    statuses: tuple[str, ...] = ()
    priority: int | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    text: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


async def list_tasks(
    source: ReadSource, *, user_id: UUID, wanted: TaskFilter, after: tuple[datetime, UUID] | None, limit: int
) -> list[Record]:
    """Tasks of a user, newest first; ``after`` is the last one of the page before."""
    columns = (
        tasks.c.id, tasks.c.user_id, tasks.c.title, tasks.c.status, tasks.c.priority, tasks.c.labels, tasks.c.error,
        tasks.c.subtask_count, tasks.c.open_count, tasks.c.created_at, tasks.c.started_at, tasks.c.finished_at,
        tasks.c.growth, tasks.c.plan_meta["partial"].is_not(None).label("is_partial"),
    )  # fmt: skip
    statement = select(*columns).where(tasks.c.user_id == user_id, *_conditions(wanted))
    if after is not None:
        at, last = after
        statement = statement.where(or_(tasks.c.created_at < at, and_(tasks.c.created_at == at, tasks.c.id < last)))
    statement = statement.order_by(tasks.c.created_at.desc(), tasks.c.id.desc()).limit(limit)
    async with reading(source) as connection:
        return list((await connection.execute(statement)).all())


def _conditions(wanted: TaskFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.statuses:
        found.append(tasks.c.status.in_(wanted.statuses))
    if wanted.priority is not None:
        found.append(tasks.c.priority == wanted.priority)
    if wanted.created_after is not None:
        found.append(tasks.c.created_at > wanted.created_after)
    if wanted.created_before is not None:
        found.append(tasks.c.created_at < wanted.created_before)
    if wanted.text:
        found.append(
            or_(
                tasks.c.title.icontains(wanted.text, autoescape=True),
                tasks.c.original_prompt.icontains(wanted.text, autoescape=True),
            )
        )
    if wanted.labels:
        found.append(tasks.c.labels.contains(dict(wanted.labels)))
    return found


async def task_status(engine: AsyncEngine, task_id: UUID, user_id: UUID) -> str | None:
    """The status of a user's task; None when there is none."""
    statement = select(tasks.c.status).where(tasks.c.id == task_id, tasks.c.user_id == user_id)
    async with reading(engine) as connection:
        return await connection.scalar(statement)


async def task_row(connection: AsyncConnection, task_id: UUID, user_id: UUID) -> Record | None:
    """A user's task, without its plan."""
    columns = [column for column in tasks.c if column.name not in ("plan", "incarnation", "context", "callback_secret")]
    statement = select(*columns).where(tasks.c.id == task_id, tasks.c.user_id == user_id)
    return (await connection.execute(statement)).one_or_none()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDetails:
    """A task, its subtasks by status, the first of them, what it goes on without (ids), and its last webhook."""

    task: Record
    by_status: Mapping[str, int]
    subtasks: Sequence[Record]
    missing: Sequence[str]
    told: Record | None

    @property
    def plan_is_open(self) -> bool:
        """Whether more subtasks may come: the plan is still being written, or added to, or never became whole."""
        return self.task.growth is not None or (self.task.plan_meta or {}).get("partial") is True


async def task_details(engine: AsyncEngine, task_id: UUID, user_id: UUID, *, limit: int) -> TaskDetails | None:
    """A task as it is at one moment, with the first of its subtasks."""
    async with reading(engine) as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        task = await task_row(connection, task_id, user_id)
        if task is None:
            return None
        counts = await connection.execute(
            select(sub_tasks.c.status, func.count())
            .where(sub_tasks.c.parent_id == task_id)
            .group_by(sub_tasks.c.status)
        )
        by_status: dict[str, int] = {row[0]: row[1] for row in counts}
        rows = (await connection.execute(_page(task_id, after=-1, limit=limit))).all()
        missing = await _missing(connection, task_id) if by_status.get(SubtaskStatus.BLOCKED) else []
        told = None if task.callback_url is None else await webhooks.latest(connection, task_id)
    return TaskDetails(task=task, by_status=by_status, subtasks=_fitting(rows), missing=missing, told=told)


async def _missing(connection: AsyncConnection, task_id: UUID) -> list[str]:
    """The ids of the BLOCKED subtasks that the task goes on without, in the order of the plan."""
    statement = select(sub_tasks.c.key).where(
        sub_tasks.c.parent_id == task_id, sub_tasks.c.status == SubtaskStatus.BLOCKED, sub_tasks.c.stand_in.is_not(None)
    )
    found = await connection.execute(statement.order_by(sub_tasks.c.execution_order).limit(MISSING_SHOWN))
    return list(found.scalars())


async def list_subtasks(
    engine: AsyncEngine, task_id: UUID, *, after: int, limit: int, statuses: tuple[str, ...] = ()
) -> tuple[list[Record], bool]:
    """Subtasks of a task in the order of its plan, and whether there are more.

    ``after`` is the ordinal of the last one seen, -1 for none. Large outputs make a page shorter than ``limit``.
    """
    statement = _page(task_id, after=after, limit=limit + 1)
    if statuses:
        statement = statement.where(sub_tasks.c.status.in_(statuses))
    async with reading(engine) as connection:
        rows = (await connection.execute(statement)).all()
    page = _fitting(rows[:limit])
    return page, len(page) < len(rows)


async def subtask_with_attempts(engine: AsyncEngine, task_id: UUID, key: str) -> tuple[Record, list[Record]] | None:
    """One subtask with its input, unless that is kept apart, and its attempts that have ended, in order."""
    inline = case((sub_tasks.c.output_size > INLINE_BYTES, null()), else_=sub_tasks.c.output_result)
    extra = (
        sub_tasks.c.input_context, sub_tasks.c.input_blob,
        sub_tasks.c.resources, sub_tasks.c.timeout_s, sub_tasks.c.max_retries,
        sub_tasks.c.retry_count, sub_tasks.c.attempt, sub_tasks.c.on_failure, sub_tasks.c.stand_in,
        sub_tasks.c.require_approval, sub_tasks.c.fallback_tool, sub_tasks.c.fallback_input,
        sub_tasks.c.fallback_attempts, sub_tasks.c.instruction, sub_tasks.c.skills, sub_tasks.c.ray_task_id,
    )  # fmt: skip
    statement = _columns(inline).add_columns(*extra).where(sub_tasks.c.parent_id == task_id, sub_tasks.c.key == key)
    async with reading(engine) as connection:
        row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return None
        logs = (
            select(execution_logs, model_tokens().label("model_tokens"))
            .where(execution_logs.c.sub_task_id == row.id)
            .order_by(execution_logs.c.attempt)
        )
        attempts = (await connection.execute(logs)).all()
    return row, list(attempts)


def _page(task_id: UUID, *, after: int, limit: int) -> Select[Any]:
    size = func.coalesce(sub_tasks.c.output_size, 0)
    inline_size = case((size > INLINE_BYTES, 0), else_=size)
    so_far = func.sum(inline_size).over(order_by=sub_tasks.c.execution_order)
    # The first one always fits: so every page gets on.
    is_beyond = and_(so_far > PAGE_INLINE_BYTES, so_far > inline_size)
    inline = case((or_(size > INLINE_BYTES, is_beyond), null()), else_=sub_tasks.c.output_result)
    return (
        _columns(inline)
        .add_columns(is_beyond.label("is_beyond"))
        .where(sub_tasks.c.parent_id == task_id, sub_tasks.c.execution_order > after)
        .order_by(sub_tasks.c.execution_order)
        .limit(limit)
    )


def _fitting(rows: Sequence[Record]) -> list[Record]:
    """The rows of a page up to the one whose output would make it too large."""
    return list(takewhile(lambda row: not row.is_beyond, rows))


def _columns(inline: ColumnElement[Any]) -> Select[Any]:
    ended = select(func.count()).select_from(execution_logs).where(execution_logs.c.sub_task_id == sub_tasks.c.id)
    running = cast(sub_tasks.c.status == SubtaskStatus.RUNNING, Integer)
    return select(
        sub_tasks.c.id, sub_tasks.c.key, sub_tasks.c.name, sub_tasks.c.task_type, sub_tasks.c.tool, sub_tasks.c.status,
        sub_tasks.c.phase, sub_tasks.c.dependencies, sub_tasks.c.worker_id, sub_tasks.c.queued_at,
        sub_tasks.c.started_at,
        sub_tasks.c.finished_at, sub_tasks.c.duration_ms, sub_tasks.c.tokens_used,
        sub_tasks.c.output_size,
        sub_tasks.c.output_sha256, sub_tasks.c.output_blob, sub_tasks.c.error,
        sub_tasks.c.not_before, sub_tasks.c.execution_order,
        (cast(ended.scalar_subquery(), BigInteger) + running).label("attempts"),
        type_coerce(inline, JSONB).label("output"), inline.is_(None).label("is_absent"),
    )  # fmt: skip


async def submitted_before(engine: AsyncEngine, user_id: UUID, key: str) -> tuple[bytes, UUID] | None:
    """The fingerprint and the task of an earlier submission with this Idempotency-Key."""
    statement = select(idempotency_keys.c.fingerprint, idempotency_keys.c.task_id).where(
        idempotency_keys.c.user_id == user_id, idempotency_keys.c.key == key
    )
    async with reading(engine) as connection:
        row = (await connection.execute(statement)).one_or_none()
    return None if row is None else (row.fingerprint, row.task_id)
