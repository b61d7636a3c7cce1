"""The way back from BLOCKED, and what is put away for good. Each call is one transaction, safe against any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import ErrorInfo, UserError
from rayloom.dag.output import clean_text
from rayloom.dag.tried import TRIED
from rayloom.dag.values import JsonObject
from rayloom.db.attempts import Committed, committed_of
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import DRIVER_ERRORS, driver, dump, dump_error, is_refusal
from rayloom.db.plan_inputs import KeptInput, keep_input


@dataclass(frozen=True, slots=True, kw_only=True)
class NewInput:
    """Another input for a BLOCKED subtask. ``dependencies``: ids of the plan that it waits for with this input."""

    value: JsonObject
    referred: tuple[str, ...]
    dependencies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedTask:
    """A task as one sees it who wants to retry it; ``retryable``: what is BLOCKED of it could go on."""

    status: str
    error_code: str
    deadline_at: datetime | None
    retryable: bool
    now: datetime
    """By the database's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a subtask is. ``is_missing``: others went on without it; ``is_rejected``: its approval was refused;
    ``is_discarded``: its letter was put away, and may be deleted by now."""

    status: str
    is_missing: bool
    is_rejected: bool
    is_discarded: bool


async def retry_letters(engine: AsyncEngine, ids: Sequence[UUID], *, reason: str) -> Committed:
    """Run subtasks again whose letters are open; those that can't, or that somebody else retried, are left alone."""
    async with driver(engine) as connection, connection.transaction():
        return await _retry(connection, ids, reason)


async def retry_with_input(
    engine: AsyncEngine, blobs: BlobStore, letter_id: UUID, given: NewInput, *, reason: str
) -> Committed:
    """The same of one subtask, with another input, which becomes part of the plan.

    Every dependency must be COMPLETED. Raises UserError (``INPUT_UNSTORABLE``) when PostgreSQL does not take it, and
    Transient while the database or the blob store is away.
    """
    kept = await keep_input(given.value, blobs)
    try:
        async with driver(engine) as connection, connection.transaction():
            await connection.execute("SELECT lock_tasks_of(ARRAY[$1]::uuid[])", letter_id)
            await _change_input(connection, letter_id, given, kept)
            committed = await _retry(connection, [letter_id], reason)
            if not committed.queued:
                raise _NothingDone
            return committed
    except _NothingDone:
        return Committed()
    except DRIVER_ERRORS as error:
        if not is_refusal(error):
            raise
        why = str(error).partition("\n")[0][:300]
        raise UserError("INPUT_UNSTORABLE", f"the database can't store this input: {why}") from error


class _NothingDone(Exception):
    """Nothing could be retried: what was changed for it must not stay."""


async def _retry(connection: asyncpg.Connection[Any], ids: Sequence[UUID], reason: str) -> Committed:
    """In a transaction of the caller's."""
    rows = await connection.fetch("SELECT * FROM retry_subtasks($1::uuid[], $2)", list(ids), clean_text(reason))
    committed = committed_of(rows)
    # What a model had answered to what was BLOCKED is no answer to what may be so later; but what it had written of a
    # plan that is not whole still is.
    await connection.execute(
        "UPDATE tasks SET plan_meta = plan_meta - $2::text WHERE id = ANY ($1::uuid[]) AND plan_meta ? $2::text "
        "AND coalesce(plan_meta -> 'partial', 'false') <> 'true'",
        list(committed.touched), TRIED,
    )  # fmt: skip
    return committed


async def _change_input(connection: asyncpg.Connection[Any], id_: UUID, given: NewInput, kept: KeptInput) -> None:
    row = await connection.fetchrow(
        "SELECT parent_id, execution_order, dependencies FROM sub_tasks WHERE id = $1 AND status = 'BLOCKED'", id_
    )
    if row is None:
        return
    # What it has depended on stays: its outputs are there, and the sinks of the plan remain what they are.
    added = [key for key in given.dependencies if key not in row["dependencies"]]
    keys = [*row["dependencies"], *added]
    await connection.execute(
        "UPDATE sub_tasks SET input_context = $2, input_blob = $3, referred = $4, dependencies = $5 WHERE id = $1",
        id_, kept.text, kept.blob, list(given.referred), dump(keys),
    )  # fmt: skip
    if added:
        await connection.execute(
            "UPDATE sub_tasks SET dependents = array_append(dependents, $1) WHERE parent_id = $2 AND key = ANY ($3)",
            id_, row["parent_id"], added,
        )  # fmt: skip
    # A fork, and whoever looks, finds in the plan what has really run.
    place = ["subtasks", str(row["execution_order"])]
    await connection.execute(
        "UPDATE tasks SET plan = jsonb_set(plan, $2, (plan #> $2) || jsonb_build_object('input', $3::jsonb, "
        "'depends_on', $4::jsonb)) WHERE id = $1",
        row["parent_id"], place, dump(given.value), dump(keys),
    )  # fmt: skip


async def retry_task(
    engine: AsyncEngine, task_id: UUID, ids: Sequence[UUID], *, budget: JsonObject | None, reason: str
) -> Committed:
    """Run BLOCKED subtasks of a task again. ``budget`` goes over what its options say; its deadline counts from now."""
    try:
        async with driver(engine) as connection, connection.transaction():
            await _raise_budget(connection, task_id, budget)
            committed = await _retry(connection, ids, reason)
            if not committed.queued:
                raise _NothingDone
            return committed
    except _NothingDone:
        return Committed()


async def refuse_growth(engine: AsyncEngine, task_id: UUID, incarnation: UUID, error: ErrorInfo) -> Committed:
    """The budget of a task refuses its growth: the task fails with this error, and may still grow as often.

    Nothing happens where another sees to it by now.
    """
    async with driver(engine) as connection:
        sql = "SELECT * FROM refuse_growth($1, $2, $3)"
        return committed_of(await connection.fetch(sql, task_id, incarnation, dump_error(error)))


async def plan_again(engine: AsyncEngine, task_id: UUID, *, budget: JsonObject | None, reason: str) -> str | None:
    """Have a task planned again that failed over that, with another budget; its status, or None where it can't be.

    Either there is no plan yet, or only the beginning of one, of which what is done stays; or its budget refused what
    it was to grow by.
    """
    try:
        async with driver(engine) as connection, connection.transaction():
            await _raise_budget(connection, task_id, budget)
            status: str | None = await connection.fetchval("SELECT plan_again($1, $2)", task_id, clean_text(reason))
            if status is None:
                raise _NothingDone
            return status
    except _NothingDone:
        return None


async def _raise_budget(connection: asyncpg.Connection[Any], task_id: UUID, budget: JsonObject | None) -> None:
    if budget is not None:
        await connection.execute(
            "UPDATE tasks SET options = options || jsonb_build_object('budget', "
            "coalesce(options -> 'budget', '{}') || $2::jsonb), "
            "deadline_at = coalesce(now() + make_interval(secs => $3), deadline_at) "
            "WHERE id = $1 AND status IN ('PROCESSING', 'FAILED')",
            task_id, dump(budget), budget.get("deadline_s"),
        )  # fmt: skip


async def blocked_task(engine: AsyncEngine, task_id: UUID, user_id: UUID) -> BlockedTask | None:
    """A user's task, as to whether it can be retried; None when there is none."""
    async with driver(engine) as connection:
        row = await connection.fetchrow(
            "SELECT status, coalesce(error ->> 'code', '') AS code, deadline_at, now() AS now, "
            "may_be_retried(status, error, deadline_at) AS retryable FROM tasks WHERE id = $1 AND user_id = $2",
            task_id,
            user_id,
        )
    if row is None:
        return None
    return BlockedTask(
        status=row["status"],
        error_code=row["code"],
        deadline_at=row["deadline_at"],
        retryable=row["retryable"],
        now=row["now"],
    )


async def open_of_task(
    engine: AsyncEngine, task_id: UUID, *, before: datetime, limit: int, keys: Sequence[str] | None = None
) -> tuple[tuple[UUID, str], ...]:
    """(id, id in the plan) of BLOCKED subtasks that can run again, with an open letter from ``before`` or earlier."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, subtask FROM dead_letters WHERE task_id = $1 AND status = 'open' AND settled_at IS NULL "
            "AND at <= $2 AND ($4::text[] IS NULL OR subtask = ANY ($4)) LIMIT $3",
            task_id, before, limit, None if keys is None else list(keys),
        )  # fmt: skip
    return tuple((row["id"], row["subtask"]) for row in rows)


async def standings_of(engine: AsyncEngine, task_id: UUID, keys: Sequence[str]) -> dict[str, Standing]:
    """Where those of these subtasks are that there are, by their ids in the plan."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT s.key, s.status, s.status = 'BLOCKED' AND s.stand_in IS NOT NULL AS is_missing, "
            "s.status = 'BLOCKED' AND s.attempt = 0 AS is_rejected, "
            "s.status = 'BLOCKED' AND l.status IS DISTINCT FROM 'open' AS is_discarded "
            "FROM sub_tasks s LEFT JOIN dead_letters l ON l.id = s.id WHERE s.parent_id = $1 AND s.key = ANY ($2)",
            task_id,
            list(keys),
        )
    return {
        row["key"]: Standing(
            status=row["status"],
            is_missing=row["is_missing"],
            is_rejected=row["is_rejected"],
            is_discarded=row["is_discarded"],
        )
        for row in rows
    }


async def discard_letters(engine: AsyncEngine, ids: Sequence[UUID]) -> int:
    """Put open letters away; their subtasks stay BLOCKED. Gives how many were put away."""
    async with driver(engine) as connection:
        return len(await connection.fetch("SELECT discard_letters($1::uuid[])", list(ids)))
