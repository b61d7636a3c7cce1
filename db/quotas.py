"""The quotas of the users, and what counts against them, as the record has it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.amount import NOTHING, Amount
from rayloom.dag.errors import UserError
from rayloom.dag.token_port import Quota
from rayloom.db.engine import driver

# A controller that asks must not hang with a database that does.
QUERY_TIMEOUT_S: Final = 5.0

LIMITS: Final = tuple(limit.name for limit in fields(Quota))
"""The columns of every table of limits."""
_MAX: Final[Mapping[str, int]] = {"requests_per_min": 2**31 - 1, "max_concurrent": 2**31 - 1}
_MAX_BIGINT: Final = 2**63 - 1
_LIMITED: Final = f"""
    SELECT user_id, {", ".join(LIMITS)} FROM quotas
    WHERE num_nonnulls({", ".join(LIMITS)}) > 0
"""
_WRITE: Final = f"""
    INSERT INTO quotas (user_id, {", ".join(LIMITS)})
    VALUES ($1, {", ".join(f"${place}" for place, _ in enumerate(LIMITS, start=2))})
    ON CONFLICT (user_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in LIMITS)}, updated_at = now()
"""
# The first condition is that of the index on leases: as many rows as attempts are under way, whatever the table holds.
_LEASED: Final = "SELECT user_id, id FROM sub_tasks WHERE incarnation IS NOT NULL AND user_id = ANY ($1::uuid[])"
_TOTALS: Final = "SELECT user_id, tokens_used, cost_usd FROM token_totals WHERE user_id = ANY ($1::uuid[])"
# Both go by an index on the time: they read what started, or used tokens and ended, in the window, whatever the tables
# hold. OFFSET 0 has each of their tasks looked up by its id, rather than all the tasks of a user read. An attempt that
# waits for a worker will start later: until then it counts as if it started now.
_STARTS: Final = """
    WITH recent AS MATERIALIZED (
        SELECT l.task_id, greatest(floor(extract(epoch FROM clock_timestamp() - l.start_time)), 0)::int AS age_s,
            count(*) AS amount
        FROM execution_logs l WHERE l.start_time > now() - make_interval(secs => $2) GROUP BY 1, 2
    )
    SELECT user_id, age_s, sum(amount)::bigint AS amount FROM (
        SELECT t.user_id, r.age_s, r.amount FROM recent r
        CROSS JOIN LATERAL (SELECT user_id FROM tasks WHERE id = r.task_id OFFSET 0) t
        WHERE t.user_id = ANY ($1::uuid[])
        UNION ALL
        SELECT s.user_id, CASE WHEN s.status = 'RUNNING'
            THEN greatest(floor(extract(epoch FROM clock_timestamp() - s.started_at)), 0)::int ELSE 0 END, 1
        FROM sub_tasks s
        WHERE s.incarnation IS NOT NULL AND s.user_id = ANY ($1::uuid[])
            AND (s.status <> 'RUNNING' OR s.started_at > now() - make_interval(secs => $2))
    ) starts GROUP BY user_id, age_s
"""
_RECENT: Final = """
    WITH recent AS MATERIALIZED (
        SELECT l.task_id, greatest(floor(extract(epoch FROM clock_timestamp() - l.end_time)), 0)::int AS age_s,
            sum(l.tokens_used) AS amount
        FROM execution_logs l
        WHERE l.end_time > now() - make_interval(secs => $2) AND l.tokens_used > 0 GROUP BY 1, 2
    )
    SELECT user_id, age_s, least(sum(amount), 9223372036854775807)::bigint AS amount FROM (
        SELECT t.user_id, r.age_s, r.amount
        FROM recent r CROSS JOIN LATERAL (SELECT user_id FROM tasks WHERE id = r.task_id OFFSET 0) t
        WHERE t.user_id = ANY ($1::uuid[])
        UNION ALL
        SELECT c.user_id, greatest(floor(extract(epoch FROM clock_timestamp() - c.settled_at)), 0)::int,
            c.tokens_in::numeric + c.tokens_out
        FROM model_calls c WHERE c.settled_at > now() - make_interval(secs => $2) AND c.user_id = ANY ($1::uuid[])
    ) tokens GROUP BY user_id, age_s
"""

Ages = tuple[tuple[int, int], ...]
"""Pairs of age in whole seconds and amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What counts against a user: attempts that hold a lease, recent starts, recent tokens, and what was used in all:
    by models, as the ledger has it, and by tools, as their attempts have it.
    """

    leased: frozenset[str] = frozenset()
    starts: Ages = ()
    tokens: Ages = ()
    used: Amount = NOTHING


class QuotaStore:
    """The table ``quotas``, and the tables that say what was used. Raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def limited(self) -> dict[str, Quota]:
        """The quotas of all users who have a limit."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_LIMITED, timeout=QUERY_TIMEOUT_S)
        return {str(row["user_id"]): quota_of(row) for row in rows}

    async def quota(self, user_id: str) -> Quota:
        """The limits of a user; none for one who has none or does not exist."""
        identity = uuid_or_none(user_id)
        if identity is None:
            return Quota()
        async with driver(self._engine) as connection:
            row = await connection.fetchrow(
                f"SELECT {', '.join(LIMITS)} FROM quotas WHERE user_id = $1", identity, timeout=QUERY_TIMEOUT_S
            )
        return Quota() if row is None else quota_of(row)

    async def write(self, user_id: str, quota: Quota) -> str:
        """Change the limits of a user, and answer its id as the tables spell it.

        Raises UserError (``USER_UNKNOWN``, ``QUOTA_INVALID``).
        """
        identity = uuid_or_none(user_id)
        if identity is None:
            raise UserError("USER_UNKNOWN", f"there is no user {user_id!r}")
        limits = [checked(name, getattr(quota, name)) for name in LIMITS]
        try:
            async with driver(self._engine) as connection:
                await connection.execute(_WRITE, identity, *limits, timeout=QUERY_TIMEOUT_S)
        except asyncpg.ForeignKeyViolationError as error:
            raise UserError("USER_UNKNOWN", f"there is no user {user_id!r}") from error
        return str(identity)

    async def leased(self, users: Sequence[str]) -> dict[str, frozenset[str]]:
        """The ids of the subtasks that have an attempt under way, running or handed to Ray, by user."""
        async with driver(self._engine) as connection:
            return await _leased(connection, users)

    async def standings(self, users: Sequence[str], *, window_s: float) -> dict[str, Standing]:
        """What counts against each of these users, all of it as of one moment."""
        async with (
            driver(self._engine) as connection,
            # One moment: an attempt that ends meanwhile must not be seen both under way and ended.
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            leased = await _leased(connection, users)
            starts = _by_user(await _fetch(connection, _STARTS, users, window_s))
            recent = _by_user(await _fetch(connection, _RECENT, users, window_s))
            totals = {
                str(row["user_id"]): Amount.of(row["tokens_used"], row["cost_usd"])
                for row in await _fetch(connection, _TOTALS, users)
            }
        return {
            user: Standing(
                leased=leased.get(user, frozenset()),
                starts=starts.get(user, ()),
                tokens=recent.get(user, ()),
                used=totals.get(user, NOTHING),
            )
            for user in users
        }


async def _leased(connection: asyncpg.Connection[asyncpg.Record], users: Sequence[str]) -> dict[str, frozenset[str]]:
    leased: defaultdict[str, set[str]] = defaultdict(set)
    for row in await _fetch(connection, _LEASED, users):
        leased[str(row["user_id"])].add(str(row["id"]))
    return {user: frozenset(ids) for user, ids in leased.items()}


async def _fetch(connection: asyncpg.Connection[asyncpg.Record], sql: str, *arguments: Any) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(sql, *arguments, timeout=QUERY_TIMEOUT_S)
    return rows


def _by_user(rows: Sequence[asyncpg.Record]) -> dict[str, Ages]:
    ages: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        ages[str(row["user_id"])].append((row["age_s"], row["amount"]))
    return {user: tuple(pairs) for user, pairs in ages.items()}


def quota_of(row: asyncpg.Record) -> Quota:
    """The limits that a row has."""
    return Quota(**{name: row[name] for name in LIMITS})


def uuid_or_none(id_: str) -> UUID | None:
    """The id that a text spells, if it does."""
    try:
        return UUID(id_)
    except ValueError:
        return None


def checked(name: str, limit: float | None) -> float | None:
    """A limit that fits into its column. Raises UserError (``QUOTA_INVALID``)."""
    if limit is None:
        return None
    highest = _MAX.get(name, _MAX_BIGINT)
    if not math.isfinite(limit) or not 0 <= limit <= highest:
        raise UserError("QUOTA_INVALID", f"{name} must be between 0 and {highest}, or null for no limit")
    return limit
