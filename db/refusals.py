"""Transitions that were asked for and refused, told in the process's log: the record keeps only those that happened."""

from __future__ import annotations

import logging
from uuid import UUID

from rayloom.dag.states import SubtaskEvent, TaskEvent

_log = logging.getLogger(__name__)


def tell_refusal(
    event: TaskEvent | SubtaskEvent,
    *,
    source: str | None,
    task_id: UUID | str,
    subtask: str | None = None,
    attempt: int | None = None,
) -> None:
    """One line: what was to happen to a task or subtask, and the status in which it is refused (None: unknown)."""
    ids = {"task_id": str(task_id), "subtask": subtask, "attempt": attempt}
    known = {name: value for name, value in ids.items() if value is not None}
    _log.info("transition.refused", extra=known | {"from": source, "event": str(event)})
