"""What happens to whole tasks: taken for splitting, ended from outside, overdue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import ErrorInfo, Stale
from rayloom.dag.log_line import LogLine
from rayloom.dag.output import clean_text, sanitise
from rayloom.dag.states import TaskEvent
from rayloom.dag.tried import NOTHING_KEPT, TRIED, Kept
from rayloom.dag.values import JsonObject
from rayloom.db import halt as halts
from rayloom.db.engine import driver, dump, dump_error
from rayloom.db.halt import Halt
from rayloom.db.log_lines import append_in
from rayloom.db.refusals import tell_refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that was ended from outside. ``refused_status`` is set when it was too late: the status it has.

    ``stopped``: the leases (subtask id, attempt) of what ran. ``halt``: what was found when it was ended.
    """

    found: bool
    refused_status: str | None = None
    stopped: tuple[tuple[str, int], ...] = ()
    halt: Halt = field(default_factory=Halt)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskToSplit:
    """A task that has been taken for splitting."""

    task_id: UUID
    user_id: UUID
    prompt: str
    context: JsonObject
    options: JsonObject
    key_id: UUID | None = None
    """The API key that it came with; None where there was none."""
    begun: tuple[JsonObject, ...] = ()
    """What of its plan has begun already, while that never became whole."""
    lost: frozenset[str] = frozenset()
    """The ids of what has begun that can't be part of any plan: it was ended, and its task retried."""
    kept: Kept = NOTHING_KEPT
    """What was tried for its plan before."""


async def end_task(
    engine: AsyncEngine,
    task_id: UUID,
    *,
    status: Literal["CANCELLED", "FAILED"],
    error: ErrorInfo | None,
    reason: str,
    splitter: UUID | None = None,
    meta: JsonObject | None = None,
    lines: Sequence[LogLine] = (),
) -> Ended:
    """End a task from outside: cancelled by its user, or failed by its deadline or its splitting.

    ``splitter``: end it only while this incarnation is splitting it, whether or not its plan has begun. Raises Stale
    (``TASK_MOVED_ON``) when it is not. ``meta``: what was done for a plan, where there is none, or none that is whole
    (what was kept of it before goes); ``lines``: what its log says of that.
    """
    event = TaskEvent.CANCEL if status == "CANCELLED" else TaskEvent.GAVE_UP
    async with driver(engine) as connection, connection.transaction():
        if splitter is not None:
            await must_be_splitting(connection, task_id, splitter, event, may_have_begun=True)
        if meta:
            # Its notes may quote anything: what PostgreSQL refuses in them must keep no task from ending.
            await connection.execute(
                "UPDATE tasks SET plan_meta = coalesce(plan_meta, '{}') - $3::text || $2::jsonb WHERE id = $1",
                task_id, dump(sanitise(meta)), TRIED,
            )  # fmt: skip
        await connection.execute("SELECT FROM tasks WHERE id = $1 FOR NO KEY UPDATE", task_id)
        halt = await halts.look(connection, task_id)
        rows = await connection.fetch(
            "SELECT * FROM end_task($1, $2, $3, $4)",
            task_id,
            status,
            None if error is None else dump_error(error),
            clean_text(reason),
        )
        refused = next((row["detail"] for row in rows if row["what"] == "refused"), None)
        if rows and refused is None:
            if lines:
                await append_in(connection, lines)
            await halts.tell(connection, task_id, halt, reason)
    if refused not in (None, status):
        tell_refusal(event, source=refused, task_id=task_id)
    stopped = tuple((str(row["sub_task_id"]), int(row["detail"])) for row in rows if row["what"] == "stopped")
    return Ended(found=bool(rows), refused_status=refused, stopped=stopped, halt=halt)


async def must_be_splitting(
    connection: asyncpg.Connection[Any],
    task_id: UUID,
    incarnation: UUID,
    event: TaskEvent,
    *,
    may_have_begun: bool = False,
) -> asyncpg.Record:
    """Lock a task for what its splitter does to it; gives its row (user_id, priority, created_at, is_held).

    ``is_held``: its plan wants approval. ``may_have_begun``: it may be PROCESSING already, by a plan that is not whole.

    Raises Stale (``TASK_MOVED_ON``) when the task is no longer being split by this incarnation.
    """
    row = await connection.fetchrow(
        "SELECT status, incarnation, user_id, priority, created_at, "
        "options @> '{\"require_approval\": true}' AS is_held, "
        "status = 'SPLITTING' OR ($2 AND status = 'PROCESSING' AND plan_meta -> 'partial' = 'true') AS is_split "
        "FROM tasks WHERE id = $1 FOR NO KEY UPDATE",
        task_id,
        may_have_begun,
    )
    if row is None or not row["is_split"] or row["incarnation"] != incarnation:
        tell_refusal(event, source=None if row is None else row["status"], task_id=task_id)
        raise Stale("TASK_MOVED_ON", "the task is no longer being split here")
    return row


async def keep_tried(engine: AsyncEngine, task_id: UUID, incarnation: UUID, kept: Kept) -> None:
    """Keep in the record of a plan what its planning goes on from. Nothing where another sees to it by now."""
    async with driver(engine) as connection:
        await connection.execute(
            "UPDATE tasks SET plan_meta = coalesce(plan_meta, '{}') - $4::text || $3::jsonb "
            "WHERE id = $1 AND incarnation = $2",
            task_id, incarnation, dump(sanitise(kept.meta())), TRIED,
        )  # fmt: skip


async def moved_on(engine: AsyncEngine, tasks: Sequence[UUID], *, incarnation: UUID) -> frozenset[UUID]:
    """Those of ``tasks`` that this incarnation no longer sees to, whether it split them or had their plans grow."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id FROM tasks WHERE id = ANY($1) AND incarnation IS DISTINCT FROM $2",
            list(tasks),
            incarnation,
        )
    return frozenset(row["id"] for row in rows)


async def expired_tasks(engine: AsyncEngine, *, limit: int = 100) -> tuple[UUID, ...]:
    """Live tasks whose deadline has passed."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id FROM tasks "
            "WHERE deadline_at <= now() AND status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING') "
            "AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT $1",
            limit,
        )
    return tuple(row["id"] for row in rows)


async def claim_tasks(
    engine: AsyncEngine,
    *,
    incarnation: UUID,
    dead: Sequence[UUID],
    limit: int,
    busy: Sequence[UUID] | None = None,
    full: Sequence[UUID] = (),
) -> tuple[TaskToSplit, ...]:
    """Take PENDING tasks for splitting, and those whose splitter died.

    ``busy``: what this incarnation is splitting; whatever else is marked as taken by it never reached it. ``full``:
    users of whom nothing new is taken.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, user_id, original_prompt, context, options, api_key_id, plan_meta "
            "FROM claim_tasks($1, $2, $3, $4::uuid[], $5::uuid[])",
            limit,
            incarnation,
            list(dead),
            None if busy is None else list(busy),
            list(full),
        )
    return tuple(
        TaskToSplit(
            task_id=row["id"],
            user_id=row["user_id"],
            prompt=row["original_prompt"] or "",
            context=row["context"],
            options=row["options"],
            key_id=row["api_key_id"],
            kept=Kept.of_meta(row["plan_meta"]),
        )
        for row in rows
    )
