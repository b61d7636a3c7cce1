"""The guarded statements of the engine, one database function each (see ``migrations/sql/0001_functions.sql``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.outcome import Outcome
from rayloom.db.engine import DRIVER_ERRORS, Source, driver, dump_error, is_refusal, unavailable
from rayloom.db.queue import Queued

INLINE_BYTES = 256 * 1024
"""Outputs and results up to here are shown inline; larger ones are given by reference (contract section 4)."""
CLAIM_CHARS = 64 * 1024 * 1024
"""A claim ends with the input that brings it to so many characters, so as not to fill the scheduler's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A subtask whose lease was just taken: all that an attempt needs. ``running``: it is RUNNING already.
    ``cacheable``: the result of an equal call will do. ``input_blob``: where the input is when it is kept apart.
    Where a model does it (``tool`` is empty): ``instruction``, ``skills``, ``rules``: which tools its task may use, as
    JSON text, and ``key_id``: the API key that it came with.

    ``unreadable``: why PostgreSQL can't give its input; then there is none, and nothing to be run.
    """

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
    cacheable: bool = False
    input_blob: str = ""
    instruction: str = ""
    skills: tuple[str, ...] = ()
    rules: str = ""
    key_id: str = ""
    unreadable: str = ""

    @property
    def use(self) -> tuple[str, str]:
        """Its task, and the tool that it uses."""
        return self.task_id, self.tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """An outcome with the decision that follows it.

    ``retry_in_s``: seconds until the next attempt; None when there is none. ``spends``: it counts against max_retries.
    ``use_fallback``: a failure turns to the subtask's fallback at once, though retries may be left; where there is
    none, or it is what failed, ``retry_in_s`` decides.
    """

    sub_task_id: str
    attempt: int
    outcome: Outcome
    retry_in_s: float | None = None
    spends: bool = True
    use_fallback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a batch of endings changed. ``refused``: endings that PostgreSQL would not take even alone, with why.

    ``bereft``: those whose outputs were kept apart, and are no longer there. ``grows``: a task is due to grow.
    """

    accepted: frozenset[str] = frozenset()
    queued: tuple[Queued, ...] = ()
    closed: tuple[tuple[str, str], ...] = ()
    touched: frozenset[str] = frozenset()
    retry_in_s: float | None = None
    refused: tuple[tuple[Ending, str], ...] = ()
    bereft: tuple[Ending, ...] = ()
    grows: bool = False

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
            bereft=self.bereft + other.bereft,
            grows=self.grows or other.grows,
        )


async def claim(engine: Source, items: Sequence[tuple[str, bool]], *, incarnation: UUID) -> tuple[Claimed, ...]:
    """Take leases of (subtask id, run now?) pairs; those that somebody else took are left out.

    So are the last ones where the inputs are large (see ``may_have_left``). Where PostgreSQL can't give an input, the
    batch is halved until that one stands alone: it is taken without its input.
    """
    try:
        return await _claim(engine, items, incarnation, chars=CLAIM_CHARS)
    except DRIVER_ERRORS as error:
        if not is_refusal(error):
            raise
        if len(items) == 1:
            why = f"{type(error).__name__}: {error}"
            taken = await _claim(engine, items, incarnation, chars=None)
            return tuple(replace(one, unreadable=why) for one in taken)
    half = len(items) // 2
    first = await claim(engine, items[:half], incarnation=incarnation)
    return first + await claim(engine, items[half:], incarnation=incarnation)


def may_have_left(claimed: Sequence[Claimed]) -> bool:
    """Whether a claim that gave these may have ended before the last that was asked for."""
    return sum(len(one.input) for one in claimed) >= CLAIM_CHARS


async def _claim(
    engine: Source, items: Sequence[tuple[str, bool]], incarnation: UUID, *, chars: int | None
) -> tuple[Claimed, ...]:
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT * FROM claim_subtasks($1, $2, $3, $4)",
            [item for item, _ in items],
            [running for _, running in items],
            incarnation,
            chars,
        )
    # The function answers in any order.
    places = {item: place for place, (item, _) in enumerate(items)}
    rows.sort(key=lambda row: places[str(row["id"])])
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
            cacheable=row["cacheable"],
            input_blob=row["input_blob"] or "",
            instruction=row["instruction"] or "",
            skills=tuple(row["skills"] or ()),
            rules=row["rules"] or "",
            key_id=str(row["api_key_id"] or ""),
        )
        for row in rows
    )


_STATUS = {"succeeded": "COMPLETED", "failed": "FAILED", "timed_out": "TIMED_OUT", "cancelled": "LOST", "lost": "LOST"}


def _columns(endings: Sequence[Ending]) -> list[list[Any]]:
    outcomes = [ending.outcome for ending in endings]
    return [
        [ending.sub_task_id for ending in endings],
        [ending.attempt for ending in endings],
        [_STATUS[outcome.verdict] for outcome in outcomes],
        [outcome.output for outcome in outcomes],
        [_error(ending) for ending in endings],
        [ending.retry_in_s for ending in endings],
        [ending.spends for ending in endings],
        [outcome.started_at for outcome in outcomes],
        [outcome.finished_at for outcome in outcomes],
        [outcome.tool_tokens for outcome in outcomes],
        [outcome.stdout for outcome in outcomes],
        [outcome.stderr for outcome in outcomes],
        [outcome.log for outcome in outcomes],
        [outcome.spans for outcome in outcomes],
        [outcome.worker_id for outcome in outcomes],
        [outcome.node_id for outcome in outcomes],
        [outcome.ray_task_id for outcome in outcomes],
    ]


def _error(ending: Ending) -> str | None:
    error = ending.outcome.error
    return None if error is None else dump_error(error.at(ending.attempt))


async def complete(engine: Source, endings: Sequence[Ending]) -> Committed:
    """Record a batch of endings in one commit.

    A batch with data that PostgreSQL refuses is halved until the culprit stands alone; that one is answered as
    ``refused``, or ``bereft``, and the others are recorded. Raises Transient for every other error: no outcome is to
    blame for it.
    """
    if not endings:
        return Committed()
    # Of several ends of one attempt the first one counts: in one statement nobody could say which of them it would be.
    endings = list({(each.sub_task_id, each.attempt): each for each in reversed(endings)}.values())[::-1]
    try:
        async with driver(engine) as connection:
            rows = await connection.fetch(
                "SELECT * FROM complete_attempts($1::uuid[], $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, "
                "$15, $16, $17, $18, $19, $20, $21)",
                *_columns(endings),
                INLINE_BYTES,
                [ending.use_fallback for ending in endings],
                [ending.outcome.output_blob or None for ending in endings],
                [ending.outcome.output_size if ending.outcome.output_blob else None for ending in endings],
            )
    except (*DRIVER_ERRORS, ValueError, TypeError, OverflowError) as error:
        if not is_refusal(error):
            raise unavailable(error) from error
        if len(endings) == 1:
            if isinstance(error, asyncpg.ForeignKeyViolationError) and endings[0].outcome.output_blob:
                # The reference to its blob: these rows have no other that could be in vain.
                return Committed(bereft=(endings[0],))
            return Committed(refused=((endings[0], f"{type(error).__name__}: {error}"),))
        half = len(endings) // 2
        return (await complete(engine, endings[:half])).joined(await complete(engine, endings[half:]))
    return committed_of(rows)


def committed_of(rows: Sequence[asyncpg.Record]) -> Committed:
    """The rows of type ``change`` that a guarded function answered."""
    waits = [float(row["detail"]) for row in rows if row["what"] == "retry"]
    return Committed(
        accepted=frozenset(str(row["sub_task_id"]) for row in rows if row["what"] == "accepted"),
        queued=queued_of(rows),
        closed=tuple((str(row["task_id"]), row["detail"]) for row in rows if row["what"] == "closed"),
        touched=frozenset(str(row["task_id"]) for row in rows),
        retry_in_s=min(waits) if waits else None,
        grows=any(row["what"] == "grows" for row in rows),
    )


def queued_of(rows: Sequence[asyncpg.Record]) -> tuple[Queued, ...]:
    """What a guarded function made QUEUED."""
    return tuple(
        Queued(str(row["sub_task_id"]), str(row["user_id"]), row["shape"], row["score"])
        for row in rows
        if row["what"] == "queued"
    )


async def statuses(engine: Source, ids: Sequence[str]) -> dict[str, str]:
    """Where these subtasks are now, by their ids."""
    async with driver(engine) as connection:
        rows = await connection.fetch("SELECT id, status FROM sub_tasks WHERE id = ANY ($1::uuid[])", list(ids))
    return {str(row["id"]): row["status"] for row in rows}


async def begin(engine: AsyncEngine, sub_task_id: str, attempt: int, worker_id: str, ray_task_id: str) -> bool:
    """A worker begins an attempt that was handed over as demand. False: the lease is gone, don't run it."""
    async with driver(engine) as connection:
        return bool(
            await connection.fetchval(
                "SELECT begin_attempt($1::uuid, $2, $3, $4)", sub_task_id, attempt, worker_id, ray_task_id
            )
        )


async def report_phase(
    engine: AsyncEngine, sub_task_id: str, attempt: int, phase: str, worker_id: str, ray_task_id: str
) -> bool:
    """A worker tells the phase of a long attempt. False: the attempt is no longer current."""
    async with driver(engine) as connection:
        return bool(
            await connection.fetchval(
                "SELECT report_phase($1::uuid, $2, $3, $4, $5)", sub_task_id, attempt, phase, worker_id, ray_task_id
            )
        )
