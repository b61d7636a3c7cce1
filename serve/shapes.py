"""How tasks and subtasks are shown: rows of the database in the shapes of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import quote

import orjson

from rayloom.dag.states import SubtaskStatus, TaskStatus
from rayloom.db.events import TransitionRow
from rayloom.db.halt import Halt
from rayloom.db.reads import Record, TaskDetails
from rayloom.serve.cursors import encode

FIRST_SUBTASKS: Final = 1000
Shown = dict[str, Any]


def output_url(task_id: object, key: str) -> str:
    """Where a whole output is served."""
    return f"/api/v1/tasks/{task_id}/subtasks/{quote(key, safe='')}/output"


def progress(by_status: Mapping[str, int], *, plan_is_open: bool = False) -> Shown:
    """Subtasks counted by status, and the share that is COMPLETED.

    A plan that is open counts in that share like one more that is not: what it will still have nobody knows.
    """
    total = sum(by_status.values())
    completed = by_status.get(SubtaskStatus.COMPLETED, 0)
    counts = {status.lower(): by_status.get(status, 0) for status in SubtaskStatus}
    shown: Shown = {"total": total}
    for name in ("completed", "running", "queued", "ready", "pending", "awaiting_approval", "failed", "blocked",
                 "skipped", "cancelled"):  # fmt: skip
        shown[name] = counts[name]
    whole = total + plan_is_open
    # 100 is said of what is done, and of nothing else.
    shown["percent"] = min(round(100 * completed / whole, 1), 100.0 if completed == whole else 99.9) if total else 0.0
    return shown


def details(found: TaskDetails, result: object, kept: Mapping[str, bytes]) -> Shown:
    """A task with its progress and its first subtasks. ``kept``: see ``subtask``."""
    task, by_status, subtasks = found.task, found.by_status, found.subtasks
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
        "forked_from": task.options.get("forked_from"),
        "plan_open": found.plan_is_open,
        "progress": progress(by_status, plan_is_open=found.plan_is_open),
        "usage": {"tokens": task.tokens_used, "cost_usd": task.cost_usd},
        "subtasks": [subtask(task.id, row, kept) for row in subtasks],
        "subtasks_next_cursor": subtask_cursor(subtasks[-1]) if len(subtasks) < total and subtasks else None,
        "missing": found.missing,
        "result": result,
        "error": task.error,
        "webhook": _webhook(task.callback_url, found.told),
    }


def shown_url(url: str) -> str:
    """Return the URL of a webhook without its query, which may hold a secret."""
    return url.partition("?")[0]


def _webhook(url: str | None, told: Record | None) -> Shown | None:
    if url is None:
        return None
    return {
        "url": shown_url(url),
        "status": "pending" if told is None else told.status,
        "attempts": 0 if told is None else told.attempts,
        "last_error": None if told is None else told.last_error,
        "delivered_at": None if told is None else told.delivered_at,
    }


def cancelled(task_id: object, halt: Halt) -> Shown:
    """A task that is CANCELLED, and what was found when it was."""
    return {
        "task_id": task_id,
        "status": TaskStatus.CANCELLED,
        "stopped": [asdict(one) for one in halt.stopped],
        "withdrawn": {status.lower(): count for status, count in halt.withdrawn.items()},
        "completed": {"count": halt.completed_count, "subtasks": list(halt.completed)},
    }


def task_item(row: Record) -> Shown:
    """A task in a list."""
    # A plan that grows is one more that is open.
    settled = row.subtask_count - row.open_count + (row.growth is not None)
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
        "plan_open": row.growth is not None or row.is_partial,
        "subtasks": {"total": row.subtask_count, "settled": settled},
        "error": row.error,
    }


def subtask_cursor(row: Record) -> str:
    """The cursor of the page that begins after a subtask."""
    return encode("subtasks", row.execution_order)


def subtask(task_id: object, row: Record, kept: Mapping[str, bytes]) -> Shown:
    """A subtask in details and lists. ``kept``: outputs that are kept apart and shown inline, by their hashes."""
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
        "output": _output(task_id, row, kept),
        "error": row.error,
    }
    if row.status == SubtaskStatus.FAILED:
        shown["retry_at"] = row.not_before
    return shown


def _output(task_id: object, row: Record, kept: Mapping[str, bytes]) -> object:
    if row.output_blob in kept:
        return orjson.Fragment(kept[row.output_blob])
    if row.status == SubtaskStatus.COMPLETED and row.is_absent and row.output_size:
        return {"$blob": output_url(task_id, row.key), "size": row.output_size, "sha256": row.output_sha256}
    return row.output


def subtask_in_full(
    task_id: object, row: Record, attempts: Sequence[Record], given: Mapping[str, object], kept: Mapping[str, bytes]
) -> Shown:
    """One subtask, with its attempts and what is told of its input (``given``). ``kept``: see ``subtask``."""
    shown = subtask(task_id, row, kept)
    shown |= given
    if row.instruction is not None:
        shown |= {"instruction": row.instruction, "skills": row.skills}
    shown["resources"] = row.resources
    shown["timeout_s"] = row.timeout_s
    shown["max_retries"] = row.max_retries
    shown["require_approval"] = row.require_approval
    shown["on_failure"] = row.on_failure
    if row.on_failure == "default":
        shown["default"] = row.stand_in
    if row.on_failure == "fallback":
        shown["fallback"] = {"tool": row.fallback_tool, "input": row.fallback_input}
    listed = [attempt(each, row) for each in attempts]
    if row.status == SubtaskStatus.RUNNING:
        listed.append(_running(row))
    shown["attempts"] = listed
    return shown


def _tool(subtask: Record, attempt: int) -> Shown:
    """What an attempt ran: the subtask's own tool, or that of its fallback."""
    is_fallback = attempt in subtask.fallback_attempts
    return {"tool": (subtask.fallback_tool if is_fallback else subtask.tool) or None, "fallback": is_fallback}


def attempt(row: Record, subtask: Record) -> Shown:
    """An attempt of a subtask that has ended."""
    return {
        "attempt": row.attempt,
        "status": row.status,
        **_tool(subtask, row.attempt),
        "queued_at": row.queued_at,
        "started_at": row.start_time,
        "finished_at": row.end_time,
        "duration_ms": _ms(row.duration),
        "tokens_used": row.tokens_used + row.model_tokens,
        "worker_id": row.worker_id,
        "node_id": row.node_id,
        "ray_task_id": row.ray_task_id,
        "stdout": row.stdout,
        "stderr": row.stderr,
        "log": row.log_content,
        "error": row.error,
    }


def _running(row: Record) -> Shown:
    empty = dict.fromkeys(("finished_at", "duration_ms", "node_id", "error"))
    return {
        "attempt": row.attempt,
        "status": row.status,
        **_tool(row, row.attempt),
        "queued_at": row.queued_at,
        "started_at": row.started_at,
        "tokens_used": 0,
        "worker_id": row.worker_id,
        # The row keeps the id that an earlier attempt told until the worker tells this one's.
        "ray_task_id": row.ray_task_id if row.worker_id is not None else None,
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
