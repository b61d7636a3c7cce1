"""Leases given back, taken back and looked after; and what is QUEUED, read from PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.tool_scope import ToolScope
from rayloom.db.attempts import Committed, committed_of, queued_of
from rayloom.db.engine import Source, driver
from rayloom.db.queue import Queued

Overdue = Literal["overran", "silent"]


_TOOL = "CASE WHEN on_fallback THEN fallback_tool ELSE tool END"
"""What the next attempt of a row calls."""
_FALLBACK = "CASE WHEN on_fallback THEN '' ELSE coalesce(fallback_tool, '') END"
"""What it may still turn to."""


@dataclass(frozen=True, slots=True)
class NextCall:
    """The tool that the next attempt of a subtask calls, and that of the fallback which it may still turn to, or ""."""

    tool: str
    fallback: str = ""


async def release(engine: Source, leases: Sequence[tuple[str, int]]) -> tuple[Queued, ...]:
    """Give back leases (subtask id, attempt) of subtasks that were handed over but not begun."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM release_leases($1::uuid[], $2)",
            [lease for lease, _ in leases],
            [attempt for _, attempt in leases],
        )
    return queued_of(rows)


async def unclaim(engine: Source, claims: Sequence[tuple[str, int]], *, incarnation: UUID) -> tuple[Queued, ...]:
    """Take back claims (subtask id, attempt) of this life as if they had never been made: no number is spent.

    Only for what was claimed as demand and never handed to anybody.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM unclaim_subtasks($1::uuid[], $2, $3)",
            [claim for claim, _ in claims],
            [attempt for _, attempt in claims],
            incarnation,
        )
    return queued_of(rows)


async def requeue_due(engine: AsyncEngine, *, limit: int = 1000) -> Committed:
    """Queue again what has waited out its back-off."""
    async with driver(engine) as connection:
        return committed_of(await connection.fetch("SELECT * FROM requeue_due($1)", limit))


async def recover(
    engine: AsyncEngine, dead: Sequence[UUID], *, limit: int = 1000, only: Sequence[tuple[str, int]] | None = None
) -> Committed:
    """Take back at most ``limit`` leases of dead incarnations; call again until nothing is queued.

    ``only``: of these leases (subtask id, attempt), and no others.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM recover_leases($1, $2, $3::uuid[], $4)",
            list(dead),
            limit,
            None if only is None else [lease for lease, _ in only],
            None if only is None else [attempt for _, attempt in only],
        )
    return committed_of(rows)


async def leases_of(engine: AsyncEngine, incarnation: UUID) -> frozenset[tuple[str, int]]:
    """Every lease (subtask id, attempt) that names this incarnation."""
    async with driver(engine) as connection:
        rows = await connection.fetch("SELECT id, attempt FROM sub_tasks WHERE incarnation = $1", incarnation)
    return frozenset((str(row["id"]), row["attempt"]) for row in rows)


async def queued_page(
    engine: AsyncEngine,
    *,
    after: tuple[float, UUID] | None,
    limit: int,
    shapes: Sequence[str] | None = None,
    but_of: Sequence[str] = (),
    but_with: Collection[NextCall] = (),
) -> tuple[Queued, ...]:
    """A page of what is QUEUED and not leased, in queue order; ``after`` is the (score, id) of the last one seen.

    ``shapes``: of these resource shapes only. ``but_of``: nothing of these users. ``but_with``: nothing that calls
    these next.
    """
    score, last = after if after is not None else (float("-inf"), UUID(int=0))
    given: list[object] = [score, last, limit]
    conditions = ""
    for condition, values in (
        ("shape = ANY (${}::text[])", shapes),
        ("user_id <> ALL (${}::uuid[])", but_of or None),
    ):
        if values is not None:
            given.append(list(values))
            conditions += "AND " + condition.format(len(given)) + " "
    if but_with:
        given += [[call.tool for call in but_with], [call.fallback for call in but_with]]
        calls = f"unnest(${len(given) - 1}::text[], ${len(given)}::text[])"
        conditions += f"AND ({_TOOL}, {_FALLBACK}) NOT IN (SELECT * FROM {calls}) "
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT id, user_id, shape, score FROM sub_tasks WHERE status = 'QUEUED' AND incarnation IS NULL "
            f"AND (score, id) > ($1, $2) {conditions}ORDER BY score, id LIMIT $3",
            *given,
        )
    return tuple(Queued(str(row["id"]), str(row["user_id"]), row["shape"], row["score"]) for row in rows)


async def calls_of(engine: Source, ids: Sequence[str]) -> dict[str, NextCall]:
    """What the next attempts call, of those that are QUEUED and not leased, by subtask id."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            f"SELECT id, {_TOOL} AS tool, {_FALLBACK} AS fallback FROM sub_tasks "
            "WHERE id = ANY ($1::uuid[]) AND status = 'QUEUED' AND incarnation IS NULL",
            list(ids),
        )
    return {str(row["id"]): NextCall(row["tool"], row["fallback"]) for row in rows}


async def scopes_of(engine: Source, ids: Sequence[str]) -> dict[str, ToolScope]:
    """Which tools their tasks may use, by subtask id."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT s.id, t.options -> 'tools' AS rules FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id "
            "WHERE s.id = ANY ($1::uuid[])",
            list(ids),
        )
    return {str(row["id"]): ToolScope.of(row["rules"]) for row in rows}


async def queued_counts(engine: AsyncEngine) -> dict[str, int]:
    """How many are QUEUED and not leased, by resource shape. Reads all of them."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT shape, count(*) AS n FROM sub_tasks WHERE status = 'QUEUED' AND incarnation IS NULL GROUP BY shape"
        )
    return {row["shape"]: row["n"] for row in rows}


async def held_leases(
    engine: AsyncEngine, leases: Sequence[tuple[str, int]], *, incarnation: UUID, grace_s: float, silent_grace_s: float
) -> dict[str, Overdue | None]:
    """Which of these leases (subtask id, attempt) this incarnation still holds, and what each is guilty of.

    One that runs has ``overran`` when it is over its timeout by more than ``grace_s`` seconds. One of which no worker
    has said anything may still be waiting in Ray: it is ``silent`` only after ``silent_grace_s`` seconds more than
    its timeout.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT s.id, CASE WHEN s.status <> 'RUNNING' THEN NULL "
            "WHEN s.worker_id IS NOT NULL AND s.started_at + make_interval(secs => s.timeout_s + $4) < now() "
            "THEN 'overran' "
            "WHEN s.worker_id IS NULL AND s.started_at + make_interval(secs => s.timeout_s + $5) < now() "
            "THEN 'silent' END AS overdue "
            "FROM sub_tasks s JOIN unnest($1::uuid[], $2::integer[]) AS o (id, attempt) ON s.id = o.id "
            "WHERE s.attempt = o.attempt AND s.incarnation = $3",
            [lease for lease, _ in leases],
            [attempt for _, attempt in leases],
            incarnation,
            grace_s,
            silent_grace_s,
        )
    return {str(row["id"]): row["overdue"] for row in rows}
