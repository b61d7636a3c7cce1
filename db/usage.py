"""What users used, and how tools do: sums over the attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Date, any_, case, cast, func, select

from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import execution_logs, sub_tasks

DEFAULT_DAYS: Final = 30
RECENT_ATTEMPTS: Final = 10_000
_FIRST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """What a user's attempts of one tool used on one day (UTC)."""

    user_id: UUID
    tool: str
    day: date
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStats:
    """How the recent attempts of a tool went; ``p50_ms`` is the median of their durations."""

    calls: int
    failures: int
    p50_ms: float | None


async def read_usage(
    source: ReadSource, *, user_id: UUID, since: datetime | None, until: datetime | None
) -> list[UsageRow]:
    """Usage of a user by tool and day, newest day first."""
    until = until or datetime.now(UTC)
    # Thirty days before the first day of all there is none.
    since = since or max(until, _FIRST + timedelta(days=DEFAULT_DAYS)) - timedelta(days=DEFAULT_DAYS)
    day = cast(func.timezone("UTC", execution_logs.c.start_time), Date)
    tokens = func.sum(execution_logs.c.tokens_used)
    statement = (
        select(sub_tasks.c.tool, day.label("day"), tokens.label("tokens"))
        .join(sub_tasks, sub_tasks.c.id == execution_logs.c.sub_task_id)
        .where(
            sub_tasks.c.user_id == user_id,
            execution_logs.c.start_time >= since,
            execution_logs.c.start_time < until,
        )
        .group_by(sub_tasks.c.tool, day)
        .order_by(day.desc(), sub_tasks.c.tool)
    )
    async with reading(source) as connection:
        rows = (await connection.execute(statement)).all()
    return [UsageRow(user_id=user_id, tool=row.tool, day=row.day, tokens=int(row.tokens)) for row in rows]


async def tool_stats(source: ReadSource) -> Mapping[str, ToolStats]:
    """How each tool did in the last 10,000 attempts of all."""
    recent = (
        select(
            execution_logs.c.sub_task_id, execution_logs.c.attempt, execution_logs.c.status,
            execution_logs.c.duration, execution_logs.c.error["code"].astext.label("code"),
        )
        .order_by(execution_logs.c.start_time.desc())
        .limit(RECENT_ATTEMPTS)
        .subquery()
    )  # fmt: skip
    is_fallback = recent.c.attempt == any_(sub_tasks.c.fallback_attempts)
    tool = case((is_fallback, sub_tasks.c.fallback_tool), else_=sub_tasks.c.tool).label("tool")
    failed = func.count().filter(recent.c.status.in_(("FAILED", "TIMED_OUT", "LOST")))
    median = func.percentile_cont(0.5).within_group(recent.c.duration)
    statement = (
        select(tool, func.count().label("calls"), failed.label("failures"), median.label("p50_ms"))
        .join(sub_tasks, sub_tasks.c.id == recent.c.sub_task_id)
        # It was not called.
        .where(recent.c.code.is_distinct_from(BREAKER_OPEN))
        .group_by(tool)
    )
    async with reading(source) as connection:
        rows = (await connection.execute(statement)).all()
    return {
        row.tool: ToolStats(calls=row.calls, failures=row.failures, p50_ms=row.p50_ms and round(row.p50_ms, 2))
        for row in rows
    }
