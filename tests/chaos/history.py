"""Reads what is left of a run: the whole record, the ledger, and what may have been left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from tests.chaos.plans import TOOL
from tests.chaos.record import (
    Accepted,
    Attempt,
    Call,
    Circumstances,
    Event,
    Heard,
    History,
    Leftovers,
    Letter,
    Life,
    Mark,
    Subtask,
    Task,
    Webhook,
)
from tests.integration.instance import Instance

BLOB_OWNERS: Final = (
    "SELECT sha256 FROM task_files",
    "SELECT input_blob FROM sub_tasks WHERE input_blob IS NOT NULL",
    "SELECT output_blob FROM sub_tasks WHERE output_blob IS NOT NULL",
)
"""What refers to a blob. Whoever lets something else refer to one names it here."""
BLOB_GRACE_S: Final = 60
"""So long a blob is kept that nothing refers to: it is there before what refers to it, and who dies between the two
leaves it behind."""
BLOB_SWEEP_S: Final = 90
"""After so long more it is collected."""
SHAPES: Final = "rayloom:shapes"
"""Which queues there are: the one key that needs no time to live, as it is as small as the cluster has shapes."""
_QUEUES: Final = "rayloom:ready:"


def read_ledger(ledger: Path) -> list[Mark]:
    """Every mark, in the order of the ledger."""
    lines = ledger.read_bytes().splitlines() if ledger.exists() else []
    return [Mark(**orjson.loads(line)) for line in lines]


def read_history(
    sql: Callable[[str], Sequence[Mapping[str, Any]]],
    accepted: Sequence[Accepted],
    marks: Sequence[Mark],
    leftovers: Leftovers,
    *,
    calls: Sequence[Call] = (),
    heard: Sequence[Heard] = (),
    circumstances: Circumstances | None = None,
    marking: str = TOOL,
) -> History:
    """The whole record, from the database that ``sql`` asks."""
    return History(
        accepted=accepted,
        tasks=[
            Task(
                id=row["id"], title=row["title"], status=row["status"], result=_json(row["result"]), held=row["held"],
                forked_from=row["forked_from"], wants_approval=row["wants_approval"], has_callback=row["has_callback"],
                user=row["user_id"],
            )
            for row in sql(
                "SELECT id::text, user_id::text, title, status, result::text, incarnation IS NOT NULL AS held, "
                "coalesce(options ->> 'forked_from', '') AS forked_from, callback_url IS NOT NULL AS has_callback, "
                "coalesce((options ->> 'require_approval')::boolean, false) AS wants_approval FROM tasks"
            )
        ],
        subtasks=[
            Subtask(
                id=row["id"], task_id=row["task_id"], key=row["key"], tool=row["tool"], status=row["status"],
                attempt=row["attempt"], after=tuple(_json(row["dependencies"])), held=row["held"],
                is_dispensable=row["on_failure"] in ("continue", "default"), wants_approval=row["require_approval"],
                on_fallback=tuple(row["fallback_attempts"]), max_retries=row["max_retries"],
                retry_count=row["retry_count"],
            )
            for row in sql(
                "SELECT id::text, parent_id::text AS task_id, key, tool, status, attempt, dependencies::text, "
                "incarnation IS NOT NULL AS held, on_failure, require_approval, fallback_attempts, max_retries, "
                "retry_count FROM sub_tasks"
            )
        ],
        attempts=[
            Attempt(
                sub_task_id=row["id"], attempt=row["attempt"], status=row["status"], code=row["code"] or "",
                started_at=row["started"], ended_at=row["ended"],
            )
            for row in sql(
                "SELECT sub_task_id::text AS id, attempt, status, error ->> 'code' AS code, "
                "extract(epoch FROM start_time)::float8 AS started, extract(epoch FROM end_time)::float8 AS ended "
                "FROM execution_logs"
            )
        ],
        events=[
            Event(
                id=row["id"], at=row["at"], task_id=row["task_id"], kind=row["kind"], subtask=row["subtask"],
                source=row["from_status"], target=row["to_status"], attempt=row["attempt"], reason=row["reason"],
            )
            for row in sql(
                "SELECT id, at, task_id::text, kind, subtask, from_status, to_status, attempt, reason FROM task_events "
                "WHERE kind IN ('task', 'subtask', 'approval') ORDER BY id"
            )
        ],
        marks=marks,
        lives=[
            Life(started_at=row["began"], heard_at=row["heard"], ended_at=row["ended"])
            for row in sql(
                "SELECT extract(epoch FROM started_at)::float8 AS began, "
                "extract(epoch FROM heartbeat_at)::float8 AS heard, "
                "extract(epoch FROM ended_at)::float8 AS ended FROM schedulers"
            )
        ],
        letters=[
            Letter(id=row["id"], status=row["status"]) for row in sql("SELECT id::text, status FROM dead_letters")
        ],
        webhooks=[
            Webhook(id=row["id"], task_id=row["task_id"], task_status=row["task_status"], status=row["status"])
            for row in sql("SELECT id::text, task_id::text, task_status, status FROM webhooks")
        ],
        calls=calls,
        heard=heard,
        leftovers=leftovers,
        limits={
            row["id"]: row["max_concurrent"]
            for row in sql("SELECT user_id::text AS id, max_concurrent FROM quotas WHERE max_concurrent IS NOT NULL")
        },
        circumstances=circumstances or Circumstances(),
        marking=marking,
    )  # fmt: skip


def look_for_leftovers(instance: Instance, checks: Mapping[str, Any], redis_ids: Sequence[str]) -> Leftovers:
    """What is left behind; ``checks``: the answer of /readyz."""

    def told(of: str, name: str) -> int:
        return int(checks[of].get("details", {}).get(name, 0))

    (blobs,) = instance.sql(
        f"SELECT count(*) AS n FROM blobs b WHERE b.sha256 NOT IN ({' UNION ALL '.join(BLOB_OWNERS)}) "
        "AND b.touched_at <= now() - make_interval(secs => $1)",
        BLOB_GRACE_S + BLOB_SWEEP_S,
    )
    (webhooks,) = instance.sql("SELECT count(*) AS n FROM webhooks WHERE status = 'pending'")
    return Leftovers(
        in_flight=told("scheduler", "in_flight"),
        uncommitted=told("scheduler", "uncommitted"),
        reservations=told("tokens", "attempts"),
        orphan_blobs=blobs["n"],
        untold_webhooks=webhooks["n"],
        redis_ids=tuple(redis_ids),
        sandboxes=tuple(each.title for each in instance.processes("bwrap")),
    )


def left_in_redis(keys: Mapping[str, bool], members: Callable[[str], Sequence[str]]) -> list[str]:
    """What nothing owns: ids that still wait in a queue (``members`` of it), and keys that would stay for ever.

    ``keys``: those that there are, and whether each expires by itself.
    """
    waiting = [f"{key} {member}" for key in sorted(keys) if key.startswith(_QUEUES) for member in members(key)]
    return waiting + [f"{key} never expires" for key, expires in sorted(keys.items()) if not expires and key != SHAPES]


def _json(value: Any) -> Any:
    return orjson.loads(value) if isinstance(value, str) else value
