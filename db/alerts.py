"""Limits that came to be nearly used up, as the record has them: one row each time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.dag.log_line import LogLine
from rayloom.dag.token_port import Level, Share
from rayloom.db.engine import driver
from rayloom.db.log_lines import append_in
from rayloom.db.quotas import QUERY_TIMEOUT_S
from rayloom.db.schema_calls import limit_alerts

Limit = tuple[Level, str, str]
"""Level, whose it is, and which."""
SHOWN: Final = 100
_OPEN: Final = "SELECT level, owner_id, limit_name FROM limit_alerts WHERE over_at IS NULL"
_OVER: Final = """
    UPDATE limit_alerts a SET over_at = now() FROM unnest($1::text[], $2::uuid[], $3::text[]) AS g (level, owner, name)
    WHERE a.level = g.level AND a.owner_id = g.owner AND a.limit_name = g.name AND a.over_at IS NULL
"""
_OVER_WITH_TASKS: Final = """
    WITH ended AS (
        SELECT g.id FROM unnest($1::uuid[]) AS g (id)
        WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.id = g.id AND t.finished_at IS NULL)
    ), over AS (
        UPDATE limit_alerts a SET over_at = now() FROM ended e
        WHERE a.level = 'task' AND a.owner_id = e.id AND a.over_at IS NULL
    )
    SELECT id FROM ended
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A limit that came to be nearly used up. ``share``: of it, 1 being all. ``over_at``: None as long as it is so."""

    at: datetime
    level: str
    id: UUID
    limit: str
    share: float
    over_at: datetime | None


class AlertStore:
    """The table ``limit_alerts``. One writer: the token controller. Raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open_alerts(self) -> frozenset[Limit]:
        """The limits that are known to be nearly used up."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_OPEN, timeout=QUERY_TIMEOUT_S)
        return _limits(rows)

    async def alert(self, near: Sequence[Share]) -> frozenset[Limit]:
        """Write down limits that are nearly used up, and of tasks into their logs; answers what was not known yet."""
        columns = (
            [each.level for each in near],
            [each.id for each in near],
            [each.limit for each in near],
            [each.share for each in near],
        )
        async with driver(self._engine) as connection, connection.transaction():
            sql = "SELECT * FROM alert_limits($1::text[], $2::uuid[], $3::text[], $4::float8[])"
            rows = await connection.fetch(sql, *columns, timeout=QUERY_TIMEOUT_S)
            new = _limits(rows)
            told = [each for each in near if each.level == "task" and (each.level, each.id, each.limit) in new]
            await append_in(connection, [_line(each) for each in told])
        return new

    async def alerts_over(self, limits: Collection[Limit]) -> None:
        """These limits are far from being used up again."""
        levels, owners, names = ([each[place] for each in limits] for place in range(3))
        async with driver(self._engine) as connection:
            await connection.execute(_OVER, levels, owners, names, timeout=QUERY_TIMEOUT_S)

    async def alerts_of_ended(self, tasks: Collection[str]) -> frozenset[str]:
        """Which of these tasks have ended, or are no more; the alerts of their limits are over."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(_OVER_WITH_TASKS, list(tasks), timeout=QUERY_TIMEOUT_S)
        return frozenset(str(row["id"]) for row in rows)


def _limits(rows: Iterable[asyncpg.Record]) -> frozenset[Limit]:
    return frozenset((row["level"], str(row["owner_id"]), row["limit_name"]) for row in rows)


def _line(near: Share) -> LogLine:
    message = f"{near.share:.0%} of the budget's {near.limit} is used"
    return LogLine(at=datetime.now(UTC), task_id=near.id, message=message, level="WARNING")


async def read_alerts(connection: AsyncConnection, *, user_id: UUID, since: datetime, until: datetime) -> list[Alert]:
    """What a user was to be told of its own limits, and those of its keys and tasks; newest first, 100 at most."""
    row = limit_alerts.c
    statement = (
        select(row.at, row.level, row.owner_id, row.limit_name, row.share, row.over_at)
        .where(row.user_id == user_id, row.at >= since, row.at < until)
        .order_by(row.at.desc(), row.id.desc())
        .limit(SHOWN)
    )
    found = (await connection.execute(statement)).all()
    return [
        Alert(
            at=each.at,
            level=each.level,
            id=each.owner_id,
            limit=each.limit_name,
            share=each.share,
            over_at=each.over_at,
        )
        for each in found
    ]
