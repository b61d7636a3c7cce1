"""Who called which tool, when, with what, and how it ended: read from the rows that every attempt leaves.

Nothing is written for it beside those: an attempt's trace names the version of the tool and the digest of its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text

from rayloom.db.reader import ReadSource, reading

Position = tuple[datetime, UUID, int, int]

_CALLS: Final = """
    SELECT e.sub_task_id, e.attempt, c.place, e.start_time, e.task_id, s.key AS subtask, t.user_id, u.name AS user_name,
        t.api_key_id, c.tool, c.span #>> '{attributes,version}' AS version,
        c.span #>> '{attributes,input_sha256}' AS input_sha256,
        -- A worker that died told nothing.
        CASE WHEN c.span IS NOT NULL THEN coalesce((c.span #>> '{attributes,called}')::boolean, true)
            WHEN e.spans <> '[]' THEN false END AS called,
        -- Of several calls of one attempt, which a model made, each has an end of its own.
        CASE WHEN NOT c.is_one_of_many THEN e.status WHEN (c.span ->> 'ok')::boolean THEN 'COMPLETED' ELSE 'FAILED' END
            AS status,
        CASE WHEN c.is_one_of_many THEN c.span #>> '{attributes,error}' ELSE e.error ->> 'code' END AS code,
        CASE WHEN c.is_one_of_many
            THEN 1000 * ((c.span ->> 'finished_at')::float8 - (c.span ->> 'started_at')::float8) ELSE e.duration END
            AS duration,
        e.worker_id
    FROM execution_logs e
    JOIN sub_tasks s ON s.id = e.sub_task_id
    JOIN tasks t ON t.id = e.task_id
    JOIN users u ON u.id = t.user_id
    CROSS JOIN LATERAL (
        SELECT found.span, found.place, s.tool = '' AND e.attempt <> ALL (s.fallback_attempts) AS is_one_of_many,
            coalesce(found.span ->> 'name',
                CASE WHEN e.attempt = ANY (s.fallback_attempts) THEN s.fallback_tool ELSE s.tool END) AS tool
        FROM (SELECT) AS nothing
        LEFT JOIN jsonb_path_query(e.spans, '$[*] ? (@.kind == "tool")') WITH ORDINALITY AS found (span, place) ON true
    ) c
    -- A model that called none has none.
    WHERE c.tool <> ''
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which calls are meant; what is None limits nothing. Times are those at which the attempts began."""

    user_id: UUID | None = None
    key_id: UUID | None = None
    task_id: UUID | None = None
    tool: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedCall:
    """One attempt to call a tool. ``place``: its number among those of the subtask's attempt, from 1.

    ``called``: whether the tool was called; None where nobody can know. ``key_id``: the key that the task was submitted
    with. ``input_sha256``: of the resolved input, as JSON with sorted keys. ``outcome`` is that of the attempt, or of
    this call where a model made it; ``duration_ms`` milliseconds.
    """

    sub_task_id: UUID
    attempt: int
    place: int
    at: datetime
    user_id: UUID
    user: str
    key_id: UUID | None
    task_id: UUID
    subtask: str
    tool: str
    version: str | None
    input_sha256: str | None
    called: bool | None
    outcome: str
    code: str | None
    duration_ms: float
    worker_id: str | None


async def read_calls(
    source: ReadSource, wanted: AuditFilter, *, after: Position | None, limit: int
) -> list[AuditedCall]:
    """Calls, newest first; ``after`` is the last one of the page before."""
    given: dict[str, Any] = {
        "t.user_id = :user_id": wanted.user_id,
        "t.api_key_id = :key_id": wanted.key_id,
        "e.task_id = :task_id": wanted.task_id,
        "c.tool = :tool": wanted.tool,
        "e.start_time >= :since": wanted.since,
        "e.start_time < :until": wanted.until,
    }
    parts = {condition: value for condition, value in given.items() if value is not None}
    values = {condition.rpartition(":")[2]: value for condition, value in parts.items()}
    if after is not None:
        # The shorter comparison is one that an index answers.
        parts["e.start_time <= :after_at"] = after
        parts[
            "(e.start_time, e.sub_task_id, e.attempt, coalesce(c.place, 1)) "
            "< (:after_at, :after_id, :after_attempt, :after_place)"
        ] = after
        values |= dict(zip(("after_at", "after_id", "after_attempt", "after_place"), after, strict=True))
    statement = "".join([_CALLS, *(f" AND {condition}" for condition in parts)])
    order = " ORDER BY e.start_time DESC, e.sub_task_id DESC, e.attempt DESC, c.place DESC LIMIT :limit"
    async with reading(source) as connection:
        rows = (await connection.execute(text(statement + order), {**values, "limit": limit})).all()
    return [_call(row) for row in rows]


def _call(row: Row[Any]) -> AuditedCall:
    return AuditedCall(
        sub_task_id=row.sub_task_id,
        attempt=row.attempt,
        place=row.place or 1,
        at=row.start_time,
        user_id=row.user_id,
        user=row.user_name,
        key_id=row.api_key_id,
        task_id=row.task_id,
        subtask=row.subtask,
        tool=row.tool,
        version=row.version,
        input_sha256=row.input_sha256,
        called=row.called,
        outcome=row.status,
        code=row.code,
        duration_ms=row.duration,
        worker_id=row.worker_id,
    )
