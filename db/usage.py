"""What users used, and how tools do: sums over the ledger and the attempts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Date, Select, any_, case, cast, func, select, text

from rayloom.dag.amount import Amount
from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.db.alerts import Alert, read_alerts
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import execution_logs, sub_tasks
from rayloom.db.schema_calls import model_calls

DEFAULT_DAYS: Final = 30
RECENT_ATTEMPTS: Final = 10_000
_FIRST: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """What was used for a user on one day (UTC): by calls of a model for one tool, or, where ``model`` is None, what a
    tool said of itself. ``tool``: None for calls that no subtask made.
    """

    user_id: UUID
    model: str | None
    tool: str | None
    day: date
    tokens_in: int
    tokens_out: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used, and what calls of models under way have reserved."""

    rows: tuple[UsageRow, ...]
    reserved: Amount
    alerts: tuple[Alert, ...] = ()
    """Limits that came to be nearly used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStats:
    """How the recent attempts of a tool went; ``p50_ms`` is the median of their durations."""

    calls: int
    failures: int
    p50_ms: float | None


async def read_usage(source: ReadSource, *, user_id: UUID, since: datetime | None, until: datetime | None) -> Usage:
    """Usage of a user by model, tool and day, newest day first; as of one moment."""
    until = until or datetime.now(UTC)
    # Thirty days before the first day of all there is none.
    since = since or max(until, _FIRST + timedelta(days=DEFAULT_DAYS)) - timedelta(days=DEFAULT_DAYS)
    open_ = select(
        func.coalesce(func.sum(model_calls.c.reserved_tokens), 0).label("tokens"),
        func.coalesce(func.sum(model_calls.c.reserved_usd), 0.0).label("cost_usd"),
    ).where(model_calls.c.user_id == user_id, model_calls.c.status == "reserved")
    async with reading(source) as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        told = (await connection.execute(_by_tools(user_id, since, until))).all()
        settled = (await connection.execute(_by_models(user_id, since, until))).all()
        reserved = (await connection.execute(open_)).one()
        alerts = await read_alerts(connection, user_id=user_id, since=since, until=until)
    rows = [
        UsageRow(user_id=user_id, model=None, tool=row.tool or None, day=row.day, tokens_in=int(row.tokens))
        for row in told
    ]
    rows += [
        UsageRow(
            user_id=user_id,
            model=row.model,
            tool=row.tool or None,
            day=row.day,
            tokens_in=int(row.tokens_in),
            tokens_out=int(row.tokens_out),
            cost_usd=row.cost_usd,
        )
        for row in settled
    ]
    rows.sort(key=lambda row: (-row.day.toordinal(), row.tool or "", row.model or ""))
    return Usage(rows=tuple(rows), reserved=Amount.of(int(reserved.tokens), reserved.cost_usd), alerts=tuple(alerts))


def _by_tools(user_id: UUID, since: datetime, until: datetime) -> Select[Any]:
    log = execution_logs.c
    # Attempts without tokens have no user_id: the index holds none of them.
    used = (
        select(
            _called(log.sub_task_id, log.attempt).label("tool"), _day(log.start_time).label("day"), log.tokens_used
        )
        .where(log.user_id == user_id, log.start_time >= since, log.start_time < until)
        .subquery()
    )  # fmt: skip
    return select(used.c.tool, used.c.day, func.sum(used.c.tokens_used).label("tokens")).group_by(
        used.c.tool, used.c.day
    )


def _by_models(user_id: UUID, since: datetime, until: datetime) -> Select[Any]:
    call = model_calls.c
    # A subtask that a model does has no tool, as a call that no subtask made.
    tool = func.nullif(_called(call.sub_task_id, call.attempt), text("''")).label("tool")
    used = (
        select(call.model, tool, _day(call.reserved_at).label("day"), call.tokens_in, call.tokens_out, call.cost_usd)
        .where(call.user_id == user_id, call.status != "reserved", call.reserved_at >= since, call.reserved_at < until)
        .subquery()
    )
    sums = [func.sum(used.c[name]).label(name) for name in ("tokens_in", "tokens_out", "cost_usd")]
    return select(used.c.model, used.c.tool, used.c.day, *sums).group_by(used.c.model, used.c.tool, used.c.day)


def _day(at: ColumnElement[datetime]) -> ColumnElement[date]:
    return cast(func.timezone("UTC", at), Date)


def _called(sub_task_id: ColumnElement[UUID], attempt: ColumnElement[int]) -> ColumnElement[Any]:
    """Look up the tool of an attempt: a subquery for each row, since PostgreSQL may read all subtasks for a join."""
    return select(_tool_of(attempt)).where(sub_tasks.c.id == sub_task_id).scalar_subquery()


def _tool_of(attempt: ColumnElement[int]) -> ColumnElement[Any]:
    """The tool that this attempt of a subtask called: its own, or that of its fallback."""
    is_fallback = attempt == any_(sub_tasks.c.fallback_attempts)
    return case((is_fallback, sub_tasks.c.fallback_tool), else_=sub_tasks.c.tool)


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
    tool = _tool_of(recent.c.attempt).label("tool")
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
