"""Dead letters: subtasks that are, or were, BLOCKED, and what is needed to understand why. Reads name the owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, and_, any_, case, cast, func, null, or_, select, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.reader import ReadSource, reading, writing
from rayloom.db.reads import Record
from rayloom.db.schema import execution_logs, sub_tasks, tasks
from rayloom.db.schema_calls import model_tokens
from rayloom.db.schema_letters import dead_letters

LISTED_INPUT_CHARS: Final = 64 * 1024
"""A list shows inputs up to here; one letter shows its whole input."""
_LISTED_INPUT_STORED: Final = 8 * 1024
"""An input that takes more room than this, compressed, is not even looked at for a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters are meant; ``labels`` are those of their tasks. ``tool``: their subtask's own, or that of its
    fallback where the last attempt ran that."""

    statuses: tuple[str, ...] = ()
    tool: str | None = None
    task_id: UUID | None = None
    fingerprint: str | None = None
    code: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterGroup:
    """Letters of one cause, counted, and the newest of them."""

    fingerprint: str
    count: int
    sample: Record


Place = tuple[datetime, UUID]
"""Where a list stopped: the time and the id of its last letter."""


async def list_letters(
    source: ReadSource, *, user_id: UUID, wanted: LetterFilter, after: Place | None, limit: int
) -> list[Record]:
    """Letters of a user, newest first; ``after`` is the last one of the page before."""
    async with reading(source) as connection:
        return list((await connection.execute(_page(_shown(), user_id, wanted, after, limit))).all())


async def letter_places(
    engine: AsyncEngine, *, user_id: UUID, wanted: LetterFilter, after: Place | None, limit: int
) -> list[Place]:
    """The same, as places only."""
    columns = select(dead_letters.c.at, dead_letters.c.id)
    async with reading(engine) as connection:
        rows = (await connection.execute(_page(columns, user_id, wanted, after, limit))).all()
    return [(row.at, row.id) for row in rows]


async def count_letters(engine: AsyncEngine, *, user_id: UUID, wanted: LetterFilter) -> int:
    """How many letters of a user there are."""
    statement = select(func.count()).select_from(dead_letters).where(*_conditions(user_id, wanted))
    async with reading(engine) as connection:
        return int(await connection.scalar(statement) or 0)


async def group_letters(
    source: ReadSource, *, user_id: UUID, wanted: LetterFilter, after: tuple[int, str] | None, limit: int
) -> list[LetterGroup]:
    """Letters of a user by cause, the largest group first; ``after`` is (count, fingerprint) of the last one seen."""
    conditions = _conditions(user_id, wanted)
    count = func.count()
    grouped = select(dead_letters.c.fingerprint, count.label("count")).where(*conditions)
    grouped = grouped.group_by(dead_letters.c.fingerprint)
    if after is not None:
        size, last = after
        grouped = grouped.having(or_(count < size, and_(count == size, dead_letters.c.fingerprint > last)))
    groups = grouped.order_by(count.desc(), dead_letters.c.fingerprint).limit(limit).subquery("groups")
    newest = (
        _shown()
        .where(*conditions, dead_letters.c.fingerprint == groups.c.fingerprint)
        .order_by(dead_letters.c.at.desc(), dead_letters.c.id.desc())
        .limit(1)
        .lateral("newest")
    )
    statement = select(groups.c.count, newest).select_from(groups.join(newest, true()))
    statement = statement.order_by(groups.c.count.desc(), groups.c.fingerprint)
    async with reading(source) as connection:
        rows = (await connection.execute(statement)).all()
    return [LetterGroup(fingerprint=row.fingerprint, count=row[0], sample=row) for row in rows]


async def letter_with_attempts(
    engine: AsyncEngine, letter_id: UUID, user_id: UUID
) -> tuple[Record, list[Record]] | None:
    """One letter of a user with its input, unless that is kept apart, and all attempts of its subtask."""
    statement = _columns(sub_tasks.c.input_context).where(
        dead_letters.c.id == letter_id, dead_letters.c.user_id == user_id
    )
    logs = (
        select(execution_logs, model_tokens().label("model_tokens"))
        .where(execution_logs.c.sub_task_id == letter_id)
        .order_by(execution_logs.c.attempt)
    )
    async with reading(engine) as connection:
        row = (await connection.execute(statement)).one_or_none()
        if row is None:
            return None
        attempts: Sequence[Record] = (await connection.execute(logs)).all()
    return row, list(attempts)


async def letter(engine: AsyncEngine, letter_id: UUID, user_id: UUID) -> Record | None:
    """One letter of a user, without its input."""
    statement = _columns(null()).where(dead_letters.c.id == letter_id, dead_letters.c.user_id == user_id)
    async with reading(engine) as connection:
        return (await connection.execute(statement)).one_or_none()


async def forget_settled(engine: AsyncEngine, *, older_than_s: float, limit: int = 1000) -> int:
    """Delete at most ``limit`` letters of which nothing can come any more since so long; gives how many."""
    over = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than_s)
    old = (
        select(dead_letters.c.id)
        .where(dead_letters.c.settled_at.is_not(None), dead_letters.c.settled_at < over)
        .order_by(dead_letters.c.settled_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    async with writing(engine) as connection:
        gone = await connection.execute(dead_letters.delete().where(dead_letters.c.id.in_(old)))
    return gone.rowcount


async def mirror_letters(
    engine: AsyncEngine, tell: Callable[[Sequence[Record]], Awaitable[None]], *, limit: int
) -> int:
    """Tell letters that were not told yet, the oldest first, and note that they were; gives how many.

    What ``tell`` raises leaves them as they were. One that was told may be told again, where noting that has failed.
    """
    untold = (
        select(dead_letters.c.id)
        .where(~dead_letters.c.mirrored)
        .order_by(dead_letters.c.at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    noted = dead_letters.update().where(dead_letters.c.id.in_(untold)).values(mirrored=True).returning(dead_letters)
    async with writing(engine) as connection:
        rows = sorted((await connection.execute(noted)).all(), key=lambda row: (row.at, row.id))
        if rows:
            await tell(rows)
    return len(rows)


def _shown() -> Select[Any]:
    size = func.length(cast(sub_tasks.c.input_context, Text))
    small = case((size <= LISTED_INPUT_CHARS, sub_tasks.c.input_context), else_=null())
    # One within the other: what is large must not be read only to learn that it is.
    stored = func.pg_column_size(sub_tasks.c.input_context)
    is_small = and_(sub_tasks.c.input_blob.is_(None), stored <= _LISTED_INPUT_STORED)
    return _columns(case((is_small, small), else_=null()))


def _columns(given: ColumnElement[Any]) -> Select[Any]:
    letter = [column for column in dead_letters.c if column.name not in ("mirrored", "settled_at")]
    task = (tasks.c.status.label("task_status"), tasks.c.error.label("task_error"), tasks.c.deadline_at)
    subtask = (
        sub_tasks.c.status.label("subtask_status"),
        sub_tasks.c.stand_in.is_not(None).label("has_stand_in"),
        sub_tasks.c.require_approval,
        sub_tasks.c.input_blob,
        sub_tasks.c.fallback_tool,
        sub_tasks.c.fallback_attempts,
    )
    return (
        select(*letter, cast(given, JSONB).label("input"), *subtask, *task)
        .join(sub_tasks, sub_tasks.c.id == dead_letters.c.id)
        .join(tasks, tasks.c.id == dead_letters.c.task_id)
    )


def _page(columns: Select[Any], user_id: UUID, wanted: LetterFilter, after: Place | None, limit: int) -> Select[Any]:
    statement = columns.where(*_conditions(user_id, wanted))
    if after is not None:
        at, last = after
        older = or_(dead_letters.c.at < at, and_(dead_letters.c.at == at, dead_letters.c.id < last))
        statement = statement.where(dead_letters.c.at <= at, older)
    return statement.order_by(dead_letters.c.at.desc(), dead_letters.c.id.desc()).limit(limit)


def _conditions(user_id: UUID, wanted: LetterFilter) -> list[ColumnElement[bool]]:
    letter = dead_letters.c
    found: list[ColumnElement[bool]] = [letter.user_id == user_id]
    if wanted.statuses:
        found.append(letter.status.in_(wanted.statuses))
    for column, value in (
        (letter.task_id, wanted.task_id),
        (letter.fingerprint, wanted.fingerprint),
        (letter.code, wanted.code),
    ):
        if value is not None:
            found.append(column == value)
    if wanted.tool is not None:
        # Under a name of its own, as the tasks below.
        failed = sub_tasks.alias("failed")
        ran_fallback = letter.attempts == any_(failed.c.fallback_attempts)
        by_fallback = select(failed.c.id).where(
            failed.c.id == letter.id, failed.c.fallback_tool == wanted.tool, ran_fallback
        )
        found.append(or_(letter.tool == wanted.tool, by_fallback.exists()))
    if wanted.created_after is not None:
        found.append(letter.at > wanted.created_after)
    if wanted.created_before is not None:
        found.append(letter.at < wanted.created_before)
    if wanted.labels:
        # Under a name of its own: a page has the letters' tasks beside them already.
        task = tasks.alias("labelled")
        labelled = select(task.c.id).where(task.c.id == letter.task_id, task.c.labels.contains(dict(wanted.labels)))
        found.append(labelled.exists())
    return found
