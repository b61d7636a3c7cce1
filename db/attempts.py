"""The guarded statements of the engine, one database function each (see ``migrations/sql/0001_functions.sql``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome, Span
from rayloom.dag.values import Json, JsonObject
from rayloom.db.engine import driver, dump, is_unavailable
from rayloom.db.queue import Queued

INLINE_BYTES = 256 * 1024
"""Outputs and results up to here are shown inline; larger ones are given by reference (contract section 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A subtask whose lease was just taken: all that an attempt needs. ``running``: it is RUNNING already."""

    sub_task_id: str
    task_id: str
    user_id: str
    key: str
    tool: str
    task_type: str
    attempt: int
    retry_count: int
    max_retries: int
    timeout_s: float
    input: str
    referred: tuple[str, ...]
    shape: str
    score: float
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """An outcome with the decision that follows it.

    ``retry_in_s``: seconds until the next attempt; None when there is none. ``spends``: it counts against max_retries.
    """

    sub_task_id: str
    attempt: int
    outcome: Outcome
    retry_in_s: float | None = None
    spends: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a batch of endings changed. ``refused``: endings that PostgreSQL would not take even alone, with why."""

    accepted: frozenset[str] = frozenset()
    queued: tuple[Queued, ...] = ()
    closed: tuple[tuple[str, str], ...] = ()
    touched: frozenset[str] = frozenset()
    retry_in_s: float | None = None
    refused: tuple[tuple[Ending, str], ...] = ()

    def joined(self, other: Committed) -> Committed:
        """Both together."""
        waits = [wait for wait in (self.retry_in_s, other.retry_in_s) if wait is not None]
        return Committed(
            accepted=self.accepted | other.accepted,
            queued=self.queued + other.queued,
            closed=self.closed + other.closed,
            touched=self.touched | other.touched,
            retry_in_s=min(waits) if waits else None,
            refused=self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A task that was ended from outside. ``refused_status`` is set when it was too late: the status it has."""

    found: bool
    refused_status: str | None = None
    stopped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskToSplit:
    """A task that has been taken for splitting."""

    task_id: UUID
    user_id: UUID
    prompt: str
    context: JsonObject
    options: JsonObject


async def claim(
    engine: AsyncEngine, items: Sequence[tuple[str, bool]], *, incarnation: UUID
) -> tuple[Claimed, ...]:
    """Take leases of (subtask id, run now?) pairs; those that somebody else took are left out."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM claim_subtasks($1, $2, $3)",
            [item for item, _ in items],
            [running for _, running in items],
            incarnation,
        )
    return tuple(
        Claimed(
            sub_task_id=str(row["id"]),
            task_id=str(row["task_id"]),
            user_id=str(row["user_id"]),
            key=row["key"],
            tool=row["tool"],
            task_type=row["task_type"],
            attempt=row["attempt"],
            retry_count=row["retry_count"],
            max_retries=row["max_retries"],
            timeout_s=row["timeout_s"],
            input=row["input"],
            referred=tuple(row["referred"]),
            shape=row["shape"],
            score=row["score"],
            running=row["running"],
        )
        for row in rows
    )


_STATUS = {"succeeded": "COMPLETED", "failed": "FAILED", "timed_out": "TIMED_OUT", "cancelled": "LOST", "lost": "LOST"}


def _span(span: Span) -> JsonObject:
    return {
        "name": span.name,
        "kind": span.kind,
        "started_at": span.started_at,
        "finished_at": span.finished_at,
        "ok": span.ok,
        "attributes": dict(span.attributes),
    }


def _columns(endings: Sequence[Ending]) -> list[list[Any]]:
    outcomes = [ending.outcome for ending in endings]
    return [
        [ending.sub_task_id for ending in endings],
        [ending.attempt for ending in endings],
        [_STATUS[outcome.verdict] for outcome in outcomes],
        [outcome.output for outcome in outcomes],
        [outcome.output_size for outcome in outcomes],
        [outcome.output_sha256 for outcome in outcomes],
        [_error(ending) for ending in endings],
        [ending.retry_in_s for ending in endings],
        [ending.spends for ending in endings],
        [outcome.started_at for outcome in outcomes],
        [outcome.finished_at for outcome in outcomes],
        [outcome.tokens_used for outcome in outcomes],
        [outcome.stdout for outcome in outcomes],
        [outcome.stderr for outcome in outcomes],
        [dump([_span(span) for span in outcome.spans]) for outcome in outcomes],
        [outcome.worker_id for outcome in outcomes],
        [outcome.node_id for outcome in outcomes],
        [outcome.ray_task_id for outcome in outcomes],
    ]


def _error(ending: Ending) -> str | None:
    error = ending.outcome.error
    return None if error is None else dump(error.at(ending.attempt).as_json())


async def complete(engine: AsyncEngine, endings: Sequence[Ending]) -> Committed:
    """Record a batch of endings in one commit.

    A batch that PostgreSQL refuses is halved until the culprit stands alone; that one is answered as ``refused`` and
    the others are recorded. Raises Transient when the database is away.
    """
    if not endings:
        return Committed()
    try:
        async with driver(engine) as connection:
            rows = await connection.fetch(
                "SELECT * FROM complete_attempts($1::uuid[], $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, "
                "$16, $17, $18, $19)",
                *_columns(endings),
                INLINE_BYTES,
            )
    except (asyncpg.PostgresError, ValueError, TypeError, OverflowError) as error:
        if is_unavailable(error):
            raise
        if len(endings) == 1:
            return Committed(refused=((endings[0], f"{type(error).__name__}: {error}"),))
        half = len(endings) // 2
        return (await complete(engine, endings[:half])).joined(await complete(engine, endings[half:]))
    return _committed(rows)


def _committed(rows: Sequence[asyncpg.Record]) -> Committed:
    waits = [float(row["detail"]) for row in rows if row["what"] == "retry"]
    return Committed(
        accepted=frozenset(str(row["sub_task_id"]) for row in rows if row["what"] == "accepted"),
        queued=_queued(rows),
        closed=tuple((str(row["task_id"]), row["detail"]) for row in rows if row["what"] == "closed"),
        touched=frozenset(str(row["task_id"]) for row in rows),
        retry_in_s=min(waits) if waits else None,
    )


def _queued(rows: Sequence[asyncpg.Record]) -> tuple[Queued, ...]:
    return tuple(
        Queued(str(row["sub_task_id"]), str(row["user_id"]), row["shape"], row["score"])
        for row in rows
        if row["what"] == "queued"
    )


async def begin(engine: AsyncEngine, sub_task_id: str, attempt: int, worker_id: str) -> bool:
    """A worker begins an attempt that was handed over as demand. False: the lease is gone, don't run it."""
    async with driver(engine) as connection:
        return bool(await connection.fetchval("SELECT begin_attempt($1::uuid, $2, $3)", sub_task_id, attempt, worker_id))


async def report_phase(engine: AsyncEngine, sub_task_id: str, attempt: int, phase: str, worker_id: str) -> bool:
    """A worker tells the phase of a long attempt. False: the attempt is no longer current."""
    async with driver(engine) as connection:
        return bool(
            await connection.fetchval("SELECT report_phase($1::uuid, $2, $3, $4)", sub_task_id, attempt, phase, worker_id)
        )


async def release(engine: AsyncEngine, leases: Sequence[tuple[str, int]]) -> tuple[Queued, ...]:
    """Give back leases (subtask id, attempt) of subtasks that were handed over but not begun."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM release_leases($1::uuid[], $2)", [lease for lease, _ in leases], [attempt for _, attempt in leases]
        )
    return _queued(rows)


async def requeue_due(engine: AsyncEngine, *, limit: int = 1000) -> Committed:
    """Queue again what has waited out its back-off."""
    async with driver(engine) as connection:
        return _committed(await connection.fetch("SELECT * FROM requeue_due($1)", limit))


async def next_due_in_s(engine: AsyncEngine) -> float | None:
    """Seconds until the next back-off ends (negative: it is over); None when none is running."""
    async with driver(engine) as connection:
        seconds = await connection.fetchval(
            "SELECT extract(epoch FROM min(not_before) - now())::float8 FROM sub_tasks WHERE status = 'FAILED'"
        )
    return None if seconds is None else float(seconds)


async def recover(engine: AsyncEngine, dead: Sequence[UUID], *, limit: int = 1000) -> Committed:
    """Take back at most ``limit`` leases of dead incarnations; call again until nothing is queued."""
    async with driver(engine) as connection:
        return _committed(await connection.fetch("SELECT * FROM recover_leases($1, $2)", list(dead), limit))


async def end_task(
    engine: AsyncEngine, task_id: UUID, *, status: Literal["CANCELLED", "FAILED"], error: ErrorInfo | None, reason: str
) -> Ended:
    """End a task from outside: cancelled by its user, or failed by its deadline or its splitting."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM end_task($1, $2, $3, $4)",
            task_id,
            status,
            None if error is None else dump(error.as_json()),
            reason,
        )
    refused = next((row["detail"] for row in rows if row["what"] == "refused"), None)
    stopped = tuple((str(row["sub_task_id"]), int(row["detail"])) for row in rows if row["what"] == "stopped")
    return Ended(found=bool(rows), refused_status=refused, stopped=stopped)


async def expired_tasks(engine: AsyncEngine, *, limit: int = 100) -> tuple[UUID, ...]:
    """Live tasks whose deadline has passed."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id FROM tasks WHERE deadline_at <= now() AND status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING') "
            "AND deadline_at IS NOT NULL ORDER BY deadline_at LIMIT $1",
            limit,
        )
    return tuple(row["id"] for row in rows)


async def claim_tasks(engine: AsyncEngine, *, incarnation: UUID, dead: Sequence[UUID], limit: int) -> tuple[TaskToSplit, ...]:
    """Take PENDING tasks for splitting, and those whose splitter died."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, user_id, original_prompt, context, options FROM claim_tasks($1, $2, $3)", limit, incarnation, list(dead)
        )
    return tuple(
        TaskToSplit(
            task_id=row["id"],
            user_id=row["user_id"],
            prompt=row["original_prompt"] or "",
            context=row["context"],
            options=row["options"],
        )
        for row in rows
    )


async def queued_page(engine: AsyncEngine, *, after: tuple[float, UUID] | None, limit: int) -> tuple[Queued, ...]:
    """A page of what is QUEUED and not leased, in queue order; ``after`` is the (score, id) of the last one seen."""
    score, last = after if after is not None else (float("-inf"), UUID(int=0))
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, user_id, shape, score FROM sub_tasks WHERE status = 'QUEUED' AND incarnation IS NULL "
            "AND (score, id) > ($1, $2) ORDER BY score, id LIMIT $3",
            score,
            last,
            limit,
        )
    return tuple(Queued(str(row["id"]), str(row["user_id"]), row["shape"], row["score"]) for row in rows)


async def held_leases(
    engine: AsyncEngine, leases: Sequence[tuple[str, int]], *, incarnation: UUID, grace_s: float
) -> dict[str, bool]:
    """Which of these leases (subtask id, attempt) this incarnation still holds, and whether each has overrun its
    timeout by more than ``grace_s`` seconds."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT s.id, s.status = 'RUNNING' AND s.started_at + make_interval(secs => s.timeout_s + $4) < now() AS overran "
            "FROM sub_tasks s JOIN unnest($1::uuid[], $2::integer[]) AS o (id, attempt) ON s.id = o.id "
            "WHERE s.attempt = o.attempt AND s.incarnation = $3",
            [lease for lease, _ in leases],
            [attempt for _, attempt in leases],
            incarnation,
            grace_s,
        )
    return {str(row["id"]): row["overran"] for row in rows}


async def outputs(engine: AsyncEngine, task_id: str, keys: Sequence[str]) -> dict[str, Json]:
    """The outputs of completed subtasks of a task, by their ids in the plan."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT key, output_result FROM sub_tasks WHERE parent_id = $1::uuid AND key = ANY ($2) AND status = 'COMPLETED'",
            task_id,
            list(keys),
        )
    return {row["key"]: row["output_result"] for row in rows}
