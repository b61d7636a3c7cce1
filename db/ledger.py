"""The ledger of the calls of models: reserved before they are made, settled with what they used.

One writer: the token controller. Reservations and settlements come in batches, one statement each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.amount import NOTHING, Amount
from rayloom.dag.errors import Bug, UserError
from rayloom.dag.log_line import LogLine
from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.output import clean_text
from rayloom.dag.token_port import Quota
from rayloom.db.engine import Line, driver
from rayloom.db.log_lines import append
from rayloom.db.quotas import LIMITS, QUERY_TIMEOUT_S, checked, quota_of, uuid_or_none

COUNT_MAX: Final = 2**48
COST_MAX: Final = 1e12

_RESERVE: Final = (
    "SELECT id, status FROM reserve_calls($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::integer[], "
    "$7::text[], $8::text[], $9::bigint[], $10::float8[], $11::float8[])"
)
_SETTLE: Final = (
    "SELECT * FROM settle_calls($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::integer[], "
    "$7::text[], $8::text[], $9::bigint[], $10::float8[], $11::bigint[], $12::bigint[], $13::float8[], $14::boolean[])"
)
# Who is silent for too long is dead, and so is whoever made a call for an attempt that is over.
_RELEASE: Final = """
    UPDATE model_calls SET status = 'released', settled_at = now() WHERE id IN (
        SELECT c.id FROM model_calls c WHERE c.status = 'reserved' AND (c.expires_at <= now() OR (
            c.sub_task_id IS NOT NULL AND NOT EXISTS (
                SELECT FROM sub_tasks s
                WHERE s.id = c.sub_task_id AND s.status = 'RUNNING' AND s.attempt = c.attempt)))
        ORDER BY c.expires_at LIMIT $1 FOR UPDATE OF c SKIP LOCKED
    ) RETURNING id
"""
_OPEN: Final = """
    SELECT id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens, reserved_usd,
        extract(epoch FROM expires_at - now())::float8 AS lease_s
    FROM model_calls WHERE status = 'reserved'
"""
# What was made within the window is open still, or was settled within the window, too.
_RECENT: Final = """
    SELECT key_id, model, floor(extract(epoch FROM clock_timestamp() - reserved_at))::int AS made_s,
        floor(extract(epoch FROM clock_timestamp() - settled_at))::int AS settled_s, count(*)::int AS calls,
        least(sum(tokens_in::numeric + tokens_out), 9223372036854775807)::bigint AS tokens
    FROM model_calls
    WHERE settled_at > now() - make_interval(secs => $1) OR status = 'reserved' GROUP BY 1, 2, 3, 4
"""
_TASKS: Final = """
    SELECT id, options -> 'budget' AS budget, tokens_used, cost_usd FROM tasks WHERE id = ANY ($1::uuid[])
"""
_KEYS: Final = f"""
    SELECT q.key_id, {", ".join(f"q.{name}" for name in LIMITS)}, coalesce(t.tokens_used, 0) AS tokens_used,
        coalesce(t.cost_usd, 0) AS cost_usd
    FROM key_quotas q LEFT JOIN key_totals t ON t.key_id = q.key_id
    WHERE num_nonnulls({", ".join(f"q.{name}" for name in LIMITS)}) > 0
"""
_WRITE_KEY: Final = f"""
    INSERT INTO key_quotas (key_id, {", ".join(LIMITS)})
    VALUES ($1, {", ".join(f"${place}" for place, _ in enumerate(LIMITS, start=2))})
    ON CONFLICT (key_id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in LIMITS)}, updated_at = now()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The limits of a task or a key, and what it has used in all."""

    quota: Quota
    used: Amount = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Calls of the last minute that were made, and settled, in the same seconds; ages in seconds.

    ``settled_s``: None for what is open.
    """

    key_id: str
    model: str
    made_s: int
    settled_s: int | None
    calls: int
    tokens: int


class Ledger:
    """The table ``model_calls`` and what is added up from it. Raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # Every call of a model waits for these: no checkout, no ping.
        self._settling = Line(engine)
        self._free: list[Line] = []

    async def close(self) -> None:
        """Give back the connections that it keeps."""
        for line in (self._settling, *self._free):
            await line.drop()

    async def reserve(self, reservations: Sequence[Reservation]) -> Mapping[str, str]:
        """Write calls down before they are made; answers the statuses of those that were known already.

        As many at a time as there are connections.
        """
        columns = _columns(reservations)
        leases = [each.lease_s for each in reservations]
        line = self._free.pop() if self._free else Line(self._engine)
        try:
            async with driver(line) as connection:
                rows = await connection.fetch(_RESERVE, *columns, leases, timeout=QUERY_TIMEOUT_S)
        finally:
            self._free.append(line)
        return {str(row["id"]): row["status"] for row in rows}

    async def settle(self, settlements: Sequence[tuple[Reservation, ModelUse]]) -> frozenset[str]:
        """Write down what calls used, durably; answers those that were not settled before. Ids must be different."""
        columns = _columns([reservation for reservation, _ in settlements])
        uses = [use for _, use in settlements]
        async with driver(self._settling) as connection:
            rows = await connection.fetch(
                _SETTLE, *columns, [_count(use.tokens_in) for use in uses], [_count(use.tokens_out) for use in uses],
                [_cost(use.cost_usd) for use in uses], [use.is_estimated for use in uses],
            )  # fmt: skip
        return frozenset(str(row[0]) for row in rows)

    async def tell(self, lines: Sequence[LogLine]) -> None:
        """Write lines into logs of tasks."""
        await append(self._engine, lines)

    async def release_expired(self, *, limit: int) -> list[str]:
        """Give back what callers reserved who have been silent for too long; answers their ids."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_RELEASE, limit, timeout=QUERY_TIMEOUT_S)
        return [str(row["id"]) for row in rows]

    async def open_calls(self) -> list[Reservation]:
        """What is reserved now; ``lease_s`` is how long it is so yet."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_OPEN, timeout=QUERY_TIMEOUT_S)
        return [_reservation(row) for row in rows]

    async def recent(self, *, window_s: float) -> list[Recent]:
        """The calls of the last ``window_s`` seconds."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_RECENT, window_s, timeout=QUERY_TIMEOUT_S)
        return [
            Recent(
                key_id=_text(row["key_id"]),
                model=row["model"],
                made_s=max(row["made_s"], 0),
                settled_s=None if row["settled_s"] is None else max(row["settled_s"], 0),
                calls=row["calls"],
                tokens=row["tokens"],
            )
            for row in rows
        ]

    async def tasks(self, ids: Sequence[str]) -> dict[str, Standing]:
        """The budgets of those of these tasks that there are, and what they have used."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_TASKS, list(ids), timeout=QUERY_TIMEOUT_S)
        return {str(row["id"]): Standing(quota=_budget(row["budget"]), used=_used(row)) for row in rows}

    async def limited_keys(self) -> dict[str, Standing]:
        """The keys that have limits."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_KEYS, timeout=QUERY_TIMEOUT_S)
        return {str(row["key_id"]): Standing(quota=quota_of(row), used=_used(row)) for row in rows}

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of a key; none for one that has none or does not exist."""
        identity = uuid_or_none(key_id)
        async with driver(self._engine) as connection:
            sql = f"SELECT {', '.join(LIMITS)} FROM key_quotas WHERE key_id = $1"
            row = await connection.fetchrow(sql, identity, timeout=QUERY_TIMEOUT_S)
        return Quota() if row is None else quota_of(row)

    async def write_key_quota(self, key_id: str, quota: Quota) -> str:
        """Change the limits of a key, and answer its id as the tables spell it.

        Raises UserError (``KEY_UNKNOWN``, ``QUOTA_INVALID``).
        """
        identity = uuid_or_none(key_id)
        if identity is None:
            raise UserError("KEY_UNKNOWN", f"there is no key {key_id!r}")
        limits = [checked(name, getattr(quota, name)) for name in LIMITS]
        try:
            async with driver(self._engine) as connection:
                await connection.execute(_WRITE_KEY, identity, *limits, timeout=QUERY_TIMEOUT_S)
        except asyncpg.ForeignKeyViolationError as error:
            raise UserError("KEY_UNKNOWN", f"there is no key {key_id!r}") from error
        return str(identity)


def check_reservation(reservation: Reservation) -> None:
    """Whether it can be written down: one that can't would keep its whole batch from it. Raises Bug."""
    payer = reservation.payer
    try:
        for id_ in (reservation.id, payer.user_id):
            UUID(id_)
        for id_ in (payer.key_id, payer.task_id, payer.sub_task_id):
            if id_:
                UUID(id_)
    except ValueError as error:
        raise Bug("RESERVATION_INVALID", f"a reservation names something that is no UUID: {error}") from error
    if payer.sub_task_id and not payer.task_id:
        raise Bug("RESERVATION_INVALID", "a reservation names a subtask and no task")
    if not 0 <= payer.attempt < 2**31 or not 0 <= reservation.tokens <= COUNT_MAX:
        raise Bug("RESERVATION_INVALID", f"a reservation of {reservation.tokens} tokens by attempt {payer.attempt}")
    # Also what is no number at all.
    if not 0 <= reservation.cost_usd <= COST_MAX or not 0 < reservation.lease_s <= COST_MAX:
        raise Bug("RESERVATION_INVALID", f"a reservation of {reservation.cost_usd} USD for {reservation.lease_s} s")


def _columns(reservations: Sequence[Reservation]) -> list[list[Any]]:
    payers = [each.payer for each in reservations]
    return [
        [each.id for each in reservations],
        [payer.user_id for payer in payers],
        [payer.key_id or None for payer in payers],
        [payer.task_id or None for payer in payers],
        [payer.sub_task_id or None for payer in payers],
        [payer.attempt for payer in payers],
        [clean_text(each.model) for each in reservations],
        [clean_text(each.purpose) for each in reservations],
        [each.tokens for each in reservations],
        [each.cost_usd for each in reservations],
    ]


def _count(tokens: int) -> int:
    return min(max(tokens, 0), COUNT_MAX)


def _cost(cost_usd: float) -> float:
    return min(max(cost_usd, 0.0), COST_MAX) if math.isfinite(cost_usd) else 0.0


def _reservation(row: asyncpg.Record) -> Reservation:
    payer = Payer(
        user_id=str(row["user_id"]),
        key_id=_text(row["key_id"]),
        task_id=_text(row["task_id"]),
        sub_task_id=_text(row["sub_task_id"]),
        attempt=row["attempt"],
    )
    return Reservation(
        id=str(row["id"]),
        payer=payer,
        model=row["model"],
        purpose=row["purpose"],
        tokens=row["reserved_tokens"],
        cost_usd=row["reserved_usd"],
        lease_s=row["lease_s"],
    )


def _text(id_: UUID | None) -> str:
    return "" if id_ is None else str(id_)


def _used(row: asyncpg.Record) -> Amount:
    return Amount.of(row["tokens_used"], row["cost_usd"])


def _budget(budget: Mapping[str, Any] | None) -> Quota:
    limits = budget or {}
    return Quota(max_tokens=limits.get("max_tokens"), max_cost_usd=limits.get("max_cost_usd"))
