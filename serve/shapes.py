"""How tasks and subtasks are shown: rows of the database in the shapes of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from rayloom.dag.states import SubtaskStatus
from rayloom.db.events import TransitionRow
from rayloom.db.reads import Record
from rayloom.serve.cursors import encode

FIRST_SUBTASKS: Final = 1000
Shown = dict[str, Any]


def output_url(task_id: object, key: str) -> str:
    """Where a whole output is served."""
    return f"/api/v1/tasks/{task_id}/subtasks/{quote(key, safe='')}/output"


def progress(by_status: Mapping[str, int]) -> Shown:
    """Subtasks counted by status, and the share that is COMPLETED."""
    total = sum(by_status.values())
    completed = by_status.get(SubtaskStatus.COMPLETED, 0)
    counts = {status.lower(): by_status.get(status, 0) for status in SubtaskStatus}
    shown: Shown = {"total": total}
    for name in ("completed", "running", "queued", "ready", "pending", "awaiting_approval", "failed", "blocked",
                 "skipped", "cancelled"):  # fmt: skip
        shown[name] = counts[name]
    shown["percent"] = round(100 * completed / total, 1) if total else 0.0
    return shown


def details(task: Record, by_status: Mapping[str, int], subtasks: Sequence[Record]) -> Shown:
    """A task with its progress and its first subtasks."""
    total = sum(by_status.values())
    return {
        "task_id": task.id,
        "title": task.title,
        "prompt": task.original_prompt,
        "status": task.status,
        "priority": task.priority,
        "labels": task.labels,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "deadline_at": task.deadline_at,
        "progress": progress(by_status),
        "usage": {"tokens": task.tokens_used, "cost_usd": task.cost_usd},
        "subtasks": [subtask(task.id, row) for row in subtasks],
        "subtasks_next_cursor": subtask_cursor(subtasks[-1]) if len(subtasks) < total and subtasks else None,
        "result": task.result,
        "error": task.error,
    }


def task_item(row: Record) -> Shown:
    """A task in a list."""
    settled = row.subtask_count - row.open_count
    return {
        "task_id": row.id,
        "user_id": row.user_id,
        "title": row.title,
        "status": row.status,
        "priority": row.priority,
        "labels": row.labels,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "subtasks": {"total": row.subtask_count, "settled": settled},
        "error": row.error,
    }


def subtask_cursor(row: Record) -> str:
    """The cursor of the page that begins after a subtask."""
    return encode("subtasks", row.execution_order)


def subtask(task_id: object, row: Record) -> Shown:
    """A subtask in details and lists."""
    shown: Shown = {
        "id": row.key,
        "sub_task_id": row.id,
        "name": row.name,
        "type": row.task_type,
        "tool": row.tool or None,
        "status": row.status,
        "phase": row.phase,
        "depends_on": row.dependencies,
        "attempts": row.attempts,
        "worker_id": row.worker_id,
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "duration_ms": _ms(row.duration_ms),
        "tokens_used": row.tokens_used,
        "output": _output(task_id, row),
        "error": row.error,
    }
    if row.status == SubtaskStatus.FAILED:
        shown["retry_at"] = row.not_before
    return shown


def _output(task_id: object, row: Record) -> object:
    if row.status == SubtaskStatus.COMPLETED and row.is_absent and row.output_size:
        return {"$blob": output_url(task_id, row.key), "size": row.output_size, "sha256": row.output_sha256}
    return row.output


def subtask_in_full(task_id: object, row: Record, attempts: Sequence[Record]) -> Shown:
    """One subtask, with its input and its attempts."""
    shown = subtask(task_id, row)
    shown["input"] = row.input_context
    shown["resources"] = row.resources
    shown["timeout_s"] = row.timeout_s
    shown["max_retries"] = row.max_retries
    listed = [_attempt(attempt) for attempt in attempts]
    if row.status == SubtaskStatus.RUNNING:
        listed.append(_running(row))
    shown["attempts"] = listed
    return shown


def _attempt(row: Record) -> Shown:
    return {
        "attempt": row.attempt,
        "status": row.status,
        "queued_at": row.queued_at,
        "started_at": row.start_time,
        "finished_at": row.end_time,
        "duration_ms": _ms(row.duration),
        "tokens_used": row.tokens_used,
        "worker_id": row.worker_id,
        "node_id": row.node_id,
        "ray_task_id": row.ray_task_id,
        "stdout": row.stdout,
        "stderr": row.stderr,
        "log": row.log_content,
        "error": row.error,
    }


def _running(row: Record) -> Shown:
    empty = dict.fromkeys(("finished_at", "duration_ms", "node_id", "ray_task_id", "error"))
    return {
        "attempt": row.attempt,
        "status": row.status,
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "tokens_used": 0,
        "worker_id": row.worker_id,
        "stdout": "",
        "stderr": "",
        "log": "",
        **empty,
    }


def _ms(milliseconds: float | None) -> float | int | None:
    """Milliseconds to a hundredth; whole ones without a point."""
    if milliseconds is None:
        return None
    rounded = round(milliseconds, 2)
    return int(rounded) if rounded == int(rounded) else rounded


def event(task_id: object, row: TransitionRow) -> Shown:
    """The data of an event."""
    return {
        "id": row.id,
        "at": row.at,
        "task_id": task_id,
        "subtask": row.subtask,
        "from": row.source,
        "to": row.target,
        "phase": row.phase,
        "attempt": row.attempt,
        "reason": row.reason,
    }
