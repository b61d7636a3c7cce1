"""The outbox of webhooks: what is due is taken for a while, told, and then settled or put off.

Several schedulers may do so at once: a row that one has taken is nobody else's until its time is over. Whoever dies
meanwhile has told it or not, so it is told again: at least once, always with the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rayloom.dag.output import clean_text
from rayloom.dag.values import Json, JsonObject
from rayloom.db.engine import driver
from rayloom.db.reader import ReadSource, reading
from rayloom.db.schema import tasks, webhooks

MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DueWebhook:
    """One that has been taken: ``attempt`` counts this try, and is its fence. ``secret`` is encrypted.

    ``result_apart``: the result has still to be put together (`results.put_together`).
    """

    id: UUID
    task_id: str
    user_id: str
    url: str
    secret: str
    task_status: str
    at: datetime
    title: str
    labels: JsonObject
    result: Json
    result_apart: bool
    error: JsonObject | None
    attempt: int
    unresolved_s: float | None
    """For how long every attempt has failed because the name of the host did not resolve; None: the last did not."""


async def take(engine: AsyncEngine, *, limit: int, lease_s: float, but_of: Sequence[str] = ()) -> list[DueWebhook]:
    """Take what is due, the longest first, for ``lease_s`` seconds; nothing of the users in ``but_of``."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "WITH due AS MATERIALIZED ("
            "  SELECT w.id FROM webhooks w WHERE w.status = 'pending' AND w.next_at <= now() "
            "  AND w.user_id <> ALL ($3::uuid[]) ORDER BY w.next_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED"
            ") UPDATE webhooks w SET attempts = w.attempts + 1, next_at = now() + make_interval(secs => $2) "
            "FROM due, tasks t WHERE w.id = due.id AND t.id = w.task_id "
            "RETURNING w.id, w.task_id, w.user_id, t.callback_url, t.callback_secret, w.task_status, w.at, t.title, "
            "t.labels, CASE WHEN w.task_status = 'COMPLETED' THEN t.result END AS result, "
            "w.task_status = 'COMPLETED' AND t.result_apart AS result_apart, w.error, w.attempts, "
            "extract(epoch FROM now() - w.unresolved_since)::float8 AS unresolved_s",
            limit,
            lease_s,
            list(but_of),
        )
    return [
        DueWebhook(
            id=row["id"],
            task_id=str(row["task_id"]),
            user_id=str(row["user_id"]),
            url=row["callback_url"],
            secret=row["callback_secret"],
            task_status=row["task_status"],
            at=row["at"],
            title=row["title"],
            labels=row["labels"],
            result=row["result"],
            result_apart=row["result_apart"],
            error=row["error"],
            attempt=row["attempts"],
            unresolved_s=row["unresolved_s"],
        )
        for row in rows
    ]


# These three return False, and change nothing, when the attempt is no longer the current one of a pending webhook.


async def delivered(engine: AsyncEngine, due: DueWebhook) -> bool:
    """It has been told. What it said is not kept any longer: the task has it."""
    return await _settle(
        engine, due, "status = 'delivered', delivered_at = now(), last_error = NULL, result = NULL, error = NULL"
    )


async def put_off(
    engine: AsyncEngine, due: DueWebhook, error: str, *, again_in_s: float, unresolved: bool = False
) -> bool:
    """Send it again after so many seconds. ``unresolved``: the name of the host did not resolve."""
    return await _settle(
        engine,
        due,
        "last_error = $3, next_at = now() + make_interval(secs => $4), "
        "unresolved_since = CASE WHEN $5 THEN coalesce(unresolved_since, now()) END",
        _fit(error),
        again_in_s,
        unresolved,
    )


async def give_up(engine: AsyncEngine, due: DueWebhook, error: str) -> bool:
    """It could not be told, and is not tried again."""
    return await _settle(engine, due, "status = 'failed', last_error = $3", _fit(error))


async def _settle(engine: AsyncEngine, due: DueWebhook, changes: str, *values: object) -> bool:
    # Another attempt, or another end, means that this one took too long: what it has to say comes too late.
    async with driver(engine) as connection:
        done = await connection.execute(
            f"UPDATE webhooks SET {changes} WHERE id = $1 AND attempts = $2 AND status = 'pending'",
            due.id,
            due.attempt,
            *values,
        )
    return bool(done == "UPDATE 1")


def _fit(error: str) -> str:
    return clean_text(error)[:MAX_ERROR_CHARS]


async def next_due_s(engine: AsyncEngine) -> float | None:
    """In how many seconds the next one is due, not less than 0; None when there is none."""
    async with driver(engine) as connection:
        seconds: Any = await connection.fetchval(
            "SELECT greatest(extract(epoch FROM min(next_at) - now()), 0)::float8 "
            "FROM webhooks WHERE status = 'pending'"
        )
    return None if seconds is None else float(seconds)


async def list_webhooks(
    source: ReadSource, *, user_id: UUID, statuses: Sequence[str], after: tuple[datetime, UUID] | None, limit: int
) -> list[Any]:
    """List the webhooks of a user, newest first. ``after``: time and id of the last one of the page before."""
    statement = _shown().where(webhooks.c.user_id == user_id, webhooks.c.status.in_(statuses))
    if after is not None:
        # The ids are in the order of their making.
        statement = statement.where(webhooks.c.id < after[1])
    async with reading(source) as connection:
        return list((await connection.execute(statement.order_by(webhooks.c.id.desc()).limit(limit))).all())


async def cancel(engine: AsyncEngine, webhook_id: UUID, user_id: UUID) -> Any | None:
    """Cancel a pending webhook of a user, and return it as it is then, whatever its status; None: there is none.

    An attempt that is under way is not stopped, but it is the last one.
    """
    async with driver(engine) as connection:
        await connection.execute(
            "UPDATE webhooks SET status = 'cancelled', result = NULL, error = NULL "
            "WHERE id = $1 AND user_id = $2 AND status = 'pending'",
            webhook_id,
            user_id,
        )
    async with reading(engine) as connection:
        found = await connection.execute(_shown().where(webhooks.c.id == webhook_id, webhooks.c.user_id == user_id))
        return found.one_or_none()


def _shown() -> Select[Any]:
    names = ("id", "task_id", "task_status", "at", "status", "attempts", "next_at", "last_error", "delivered_at")
    columns = [webhooks.c[name] for name in names]
    return select(*columns, tasks.c.callback_url).join(tasks, tasks.c.id == webhooks.c.task_id)


async def latest(connection: AsyncConnection, task_id: UUID) -> Any | None:
    """The last end of a task that was to be told: status, attempts, last_error, delivered_at. None before the first."""
    statement = (
        select(webhooks.c.status, webhooks.c.attempts, webhooks.c.last_error, webhooks.c.delivered_at)
        .where(webhooks.c.task_id == task_id)
        .order_by(webhooks.c.id.desc())
        .limit(1)
    )
    return (await connection.execute(statement)).one_or_none()
