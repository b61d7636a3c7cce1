"""What the record says of why a subtask is not running yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.states import SubtaskStatus
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.dag.values import JsonObject
from rayloom.db.engine import driver

NAMED: Final = 20
"""So many open dependencies are named; the others are counted."""
COUNTED: Final = 10_000
"""A place in the queue further behind, or a throughput above, is not counted out."""
THROUGHPUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A dependency that is not done."""

    key: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a QUEUED subtask stands. ``ahead``: all that come first; ``ahead_alike``: those of its resource shape.

    ``started``: how many attempts were started in the last ``THROUGHPUT_S`` seconds. None counts beyond ``COUNTED``.
    """

    ahead: int
    ahead_alike: int
    started: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """A subtask, and what the record has to say. ``is_leased``: a scheduler has handed it to Ray. ``tool``: of its next
    attempt. ``fallback``: the tool of the fallback that it may still turn to, or "". ``scope``: what its task may use.
    """

    sub_task_id: UUID
    status: str
    task_status: str
    shape: str
    is_leased: bool
    tool: str
    not_before: datetime | None
    error: JsonObject | None
    attempt: int
    fallback: str = ""
    scope: ToolScope = ALL_TOOLS
    open: tuple[Open, ...] = ()
    open_count: int = 0
    place: Place | None = None


async def look(engine: AsyncEngine, task_id: UUID, key: str) -> WaitingRow | None:
    """Why a subtask waits, as far as the record knows; None when there is no such subtask."""
    async with driver(engine) as connection:
        row = await connection.fetchrow(
            "SELECT s.id, s.status, t.status AS task_status, s.shape, s.score, s.incarnation IS NOT NULL AS is_leased, "
            "s.not_before, s.error, s.attempt, s.dependencies, "
            "CASE WHEN s.on_fallback THEN s.fallback_tool ELSE s.tool END AS tool, t.options -> 'tools' AS rules, "
            "CASE WHEN s.on_fallback THEN '' ELSE coalesce(s.fallback_tool, '') END AS fallback "
            "FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id "
            "WHERE s.parent_id = $1 AND s.key = $2",
            task_id,
            key,
        )
        if row is None:
            return None
        open_: tuple[Open, ...] = ()
        open_count, place = 0, None
        if row["status"] == SubtaskStatus.READY:
            rows = await connection.fetch(
                "SELECT key, status, count(*) OVER () AS n FROM sub_tasks "
                "WHERE parent_id = $1 AND key = ANY ($2::text[]) AND status <> 'COMPLETED' "
                "AND NOT (status = 'BLOCKED' AND stand_in IS NOT NULL) "
                "ORDER BY execution_order LIMIT $3",
                task_id,
                list(row["dependencies"]),
                NAMED,
            )
            open_ = tuple(Open(key=each["key"], status=each["status"]) for each in rows)
            open_count = rows[0]["n"] if rows else 0
        elif row["status"] == SubtaskStatus.QUEUED and not row["is_leased"]:
            found = await connection.fetchrow(
                "SELECT a.n AS ahead, a.alike, (SELECT count(*) FROM (SELECT FROM execution_logs "
                "WHERE start_time > now() - make_interval(secs => $5) LIMIT $4) l) AS started "
                "FROM (SELECT count(*) AS n, count(*) FILTER (WHERE shape = $3) AS alike FROM ("
                "  SELECT shape FROM sub_tasks WHERE status = 'QUEUED' AND incarnation IS NULL "
                "  AND (score, id) < ($1, $2) LIMIT $4) q) a",
                row["score"],
                row["id"],
                row["shape"],
                COUNTED,
                THROUGHPUT_S,
            )
            assert found is not None
            place = Place(ahead=found["ahead"], ahead_alike=found["alike"], started=found["started"])
    return WaitingRow(
        sub_task_id=row["id"],
        status=row["status"],
        task_status=row["task_status"],
        shape=row["shape"],
        tool=row["tool"],
        is_leased=row["is_leased"],
        not_before=row["not_before"],
        error=row["error"],
        attempt=row["attempt"],
        fallback=row["fallback"],
        scope=ToolScope.of(row["rules"]),
        open=open_,
        open_count=open_count,
        place=place,
    )
