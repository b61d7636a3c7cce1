"""The ledger of the calls of models: reserved before they are made, settled with what they used.

One writer: the token controller. Reservations and settlements come in batches, one statement each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.amount import NOTHING, Amount
from rayloom.dag.errors import UserError
from rayloom.dag.model import ModelUse, Reservation
from rayloom.dag.token_port import Quota
from rayloom.db.engine import Line, driver
from rayloom.db.ledger_rows import (
    budget_of,
    columns_of,
    cost_of,
    count_of,
    difference_of,
    reservation_of,
    text_of,
    use_of,
    used_of,
)
from rayloom.db.quotas import LIMITS, QUERY_TIMEOUT_S, checked, quota_of, uuid_or_none

_RESERVE: Final = (
    "SELECT id, status FROM reserve_calls($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::integer[], "
    "$7::text[], $8::text[], $9::bigint[], $10::float8[], $11::float8[], $12::bigint[], $13::bigint[], $14::float8[])"
)
_SETTLE: Final = (
    "SELECT * FROM settle_calls($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::integer[], "
    "$7::text[], $8::text[], $9::bigint[], $10::float8[], $11::bigint[], $12::bigint[], $13::float8[], $14::boolean[])"
)
_GRANT_AHEAD: Final = "INSERT INTO granting_ahead DEFAULT VALUES ON CONFLICT (is_row) DO NOTHING"
_OPEN: Final = """
    SELECT id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens, reserved_usd,
        extract(epoch FROM expires_at - now())::float8 AS lease_s
    FROM model_calls WHERE status = 'reserved'
"""
_RECORDED: Final = """
    SELECT id, status, tokens_in, tokens_out, cost_usd, is_estimated FROM model_calls WHERE id = ANY ($1::uuid[])
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A call that its caller left: whose it was, and what is counted of it."""

    user_id: str
    used: Amount


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A call as it is written down. ``use``: nothing while its status is ``reserved``."""

    status: str
    use: ModelUse

    @property
    def is_open(self) -> bool:
        """Whether it is reserved, and neither settled nor released."""
        return self.status == "reserved"


class Ledger:
    """The table ``model_calls`` and what is added up from it. Raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # Every call of a model waits for these: no checkout.
        self._settling = Line(engine)
        self._free: list[Line] = []

    async def close(self) -> None:
        """Give back the connections that it keeps."""
        for line in (self._settling, *self._free):
            await line.drop()

    async def reserve(self, reservations: Sequence[Reservation]) -> Mapping[str, str]:
        """Write calls down before they are made, or that they are still under way: then their leases are renewed.

        Answers the statuses of those that are settled or released already. As many at a time as there are connections.
        """
        # Of one that is asked for and renewed at once the last word counts.
        reservations = list({each.id: each for each in reservations}.values())
        columns, least = columns_of(reservations), [each.least for each in reservations]
        columns += [
            [each.lease_s for each in reservations],
            [count_of(use.tokens_in) for use in least],
            [count_of(use.tokens_out) for use in least],
            [cost_of(use.cost_usd) for use in least],
        ]
        line = self._free.pop() if self._free else Line(self._engine)
        try:
            async with driver(line) as connection:
                rows = await connection.fetch(_RESERVE, *columns, timeout=QUERY_TIMEOUT_S)
        finally:
            self._free.append(line)
        return {str(row["id"]): row["status"] for row in rows}

    async def settle(self, settlements: Sequence[tuple[Reservation, ModelUse]]) -> Mapping[str, Amount]:
        """Write down what calls used, durably. Ids must be different.

        Answers those that were not settled before, with what they add to what was counted: something was already of
        those that were released.
        """
        columns = columns_of([reservation for reservation, _ in settlements])
        uses = [use for _, use in settlements]
        async with driver(self._settling) as connection:
            rows = await connection.fetch(
                _SETTLE,
                *columns,
                [count_of(use.tokens_in) for use in uses],
                [count_of(use.tokens_out) for use in uses],
                [cost_of(use.cost_usd) for use in uses],
                [use.is_estimated for use in uses],
            )
        return {str(row["id"]): difference_of(row) for row in rows}

    async def left(self, *, expired: bool, limit: int) -> dict[str, bool]:
        """The calls that their callers have left, as the record has it; True: their leases are over.

        ``expired``: also those of which nothing else is known.
        """
        async with driver(self._engine) as connection:
            sql = "SELECT id, has_expired FROM left_calls($1, $2)"
            rows = await connection.fetch(sql, expired, limit, timeout=QUERY_TIMEOUT_S)
        return {str(row["id"]): row["has_expired"] for row in rows}

    async def release(self, ids: Sequence[str]) -> dict[str, Released]:
        """Give back what is reserved for calls that were left, and count what they have used at least."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch("SELECT * FROM release_calls($1::uuid[])", list(ids), timeout=QUERY_TIMEOUT_S)
        return {str(row["id"]): Released(user_id=str(row["user_id"]), used=difference_of(row)) for row in rows}

    async def is_granted_ahead(self) -> bool:
        """Whether reservations may have been granted that are not written down."""
        async with driver(self._engine) as connection:
            sql = "SELECT EXISTS (SELECT FROM granting_ahead)"
            found: bool = await connection.fetchval(sql, timeout=QUERY_TIMEOUT_S)
        return found

    async def grant_ahead(self, is_ahead: bool) -> None:
        """Reservations may be granted before they are written down from now on, or are not, and all are written."""
        async with driver(self._engine) as connection:
            sql = _GRANT_AHEAD if is_ahead else "DELETE FROM granting_ahead"
            await connection.execute(sql, timeout=QUERY_TIMEOUT_S)

    async def open_calls(self) -> list[Reservation]:
        """What is reserved now; ``lease_s`` is how long it is so yet."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_OPEN, timeout=QUERY_TIMEOUT_S)
        return [reservation_of(row) for row in rows]

    async def recorded(self, ids: Sequence[str]) -> dict[str, Recorded]:
        """Those of these calls that are written down."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_RECORDED, list(ids), timeout=QUERY_TIMEOUT_S)
        return {str(row["id"]): Recorded(status=row["status"], use=use_of(row)) for row in rows}

    async def recent(self, *, window_s: float) -> list[Recent]:
        """The calls of the last ``window_s`` seconds."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_RECENT, window_s, timeout=QUERY_TIMEOUT_S)
        return [
            Recent(
                key_id=text_of(row["key_id"]),
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
        return {str(row["id"]): Standing(quota=budget_of(row["budget"]), used=used_of(row)) for row in rows}

    async def limited_keys(self) -> dict[str, Standing]:
        """The keys that have limits."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_KEYS, timeout=QUERY_TIMEOUT_S)
        return {str(row["key_id"]): Standing(quota=quota_of(row), used=used_of(row)) for row in rows}

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
