"""The state machines of tasks and subtasks, as tables. A pair that is absent is illegal.

This module is the one place that says which transition exists; the database's guard, ``docs/states.md``, the API's
refusals and the property tests are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from rayloom.dag.errors import Stale


class TaskStatus(StrEnum):
    """Where a task is."""

    PENDING = "PENDING"
    SPLITTING = "SPLITTING"
    READY = "READY"
    PROCESSING = "PROCESSING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class SubtaskStatus(StrEnum):
    """Where a subtask is."""

    PENDING = "PENDING"
    READY = "READY"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"


class Phase(StrEnum):
    """What a RUNNING subtask's attempt is doing."""

    PREPARE_ENV = "PREPARE_ENV"
    EXECUTING = "EXECUTING"
    POST_PROCESS = "POST_PROCESS"


class TaskEvent(StrEnum):
    """What can happen to a task."""

    SPLIT_STARTED = "split_started"
    PLAN_ACCEPTED = "plan_accepted"
    STARTED = "started"
    REJECTED = "rejected"
    ALL_DONE = "all_done"
    GAVE_UP = "gave_up"
    CANCEL = "cancel"
    RETRIED = "retried"
    REPLANNED = "replanned"


class SubtaskEvent(StrEnum):
    """What can happen to a subtask."""

    ACCEPTED = "accepted"
    FREED = "freed"
    HELD = "held"
    APPROVED = "approved"
    REJECTED = "rejected"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    ATTEMPT_FAILED = "attempt_failed"
    RETRY_DUE = "retry_due"
    FELL_BACK = "fell_back"
    SPENT = "spent"
    DEPENDENCY_BLOCKED = "dependency_blocked"
    RETRIED = "retried"
    REVIVED = "revived"
    CANCEL = "cancel"


_T, _TE, _S, _SE = TaskStatus, TaskEvent, SubtaskStatus, SubtaskEvent

TASK_MOVES: Final[Mapping[tuple[TaskStatus, TaskEvent], TaskStatus]] = MappingProxyType(
    {
        (_T.PENDING, _TE.SPLIT_STARTED): _T.SPLITTING,
        (_T.PENDING, _TE.GAVE_UP): _T.FAILED,
        (_T.PENDING, _TE.CANCEL): _T.CANCELLED,
        (_T.SPLITTING, _TE.PLAN_ACCEPTED): _T.READY,
        (_T.SPLITTING, _TE.GAVE_UP): _T.FAILED,
        (_T.SPLITTING, _TE.CANCEL): _T.CANCELLED,
        (_T.READY, _TE.STARTED): _T.PROCESSING,
        (_T.READY, _TE.REJECTED): _T.CANCELLED,
        (_T.READY, _TE.GAVE_UP): _T.FAILED,
        (_T.READY, _TE.CANCEL): _T.CANCELLED,
        (_T.PROCESSING, _TE.ALL_DONE): _T.COMPLETED,
        (_T.PROCESSING, _TE.GAVE_UP): _T.FAILED,
        (_T.PROCESSING, _TE.CANCEL): _T.CANCELLED,
        (_T.FAILED, _TE.RETRIED): _T.PROCESSING,
        (_T.FAILED, _TE.REPLANNED): _T.PENDING,
    }
)

SUBTASK_MOVES: Final[Mapping[tuple[SubtaskStatus, SubtaskEvent], SubtaskStatus]] = MappingProxyType(
    {
        (_S.PENDING, _SE.ACCEPTED): _S.READY,
        (_S.PENDING, _SE.CANCEL): _S.CANCELLED,
        (_S.READY, _SE.FREED): _S.QUEUED,
        (_S.READY, _SE.HELD): _S.AWAITING_APPROVAL,
        (_S.READY, _SE.DEPENDENCY_BLOCKED): _S.SKIPPED,
        (_S.READY, _SE.CANCEL): _S.CANCELLED,
        (_S.AWAITING_APPROVAL, _SE.APPROVED): _S.QUEUED,
        (_S.AWAITING_APPROVAL, _SE.REJECTED): _S.BLOCKED,
        (_S.AWAITING_APPROVAL, _SE.CANCEL): _S.CANCELLED,
        (_S.QUEUED, _SE.STARTED): _S.RUNNING,
        (_S.QUEUED, _SE.CANCEL): _S.CANCELLED,
        (_S.RUNNING, _SE.SUCCEEDED): _S.COMPLETED,
        (_S.RUNNING, _SE.ATTEMPT_FAILED): _S.FAILED,
        (_S.RUNNING, _SE.CANCEL): _S.CANCELLED,
        (_S.FAILED, _SE.RETRY_DUE): _S.QUEUED,
        (_S.FAILED, _SE.FELL_BACK): _S.QUEUED,
        (_S.FAILED, _SE.SPENT): _S.BLOCKED,
        (_S.FAILED, _SE.CANCEL): _S.CANCELLED,
        (_S.BLOCKED, _SE.RETRIED): _S.QUEUED,
        (_S.SKIPPED, _SE.REVIVED): _S.READY,
    }
)

TASK_TERMINAL: Final = frozenset({_T.COMPLETED, _T.FAILED, _T.CANCELLED})
TASK_FINAL: Final = frozenset({_T.COMPLETED, _T.CANCELLED})
"""A task in one of these never changes again; FAILED may go on by a retry."""

SUBTASK_SETTLED: Final = frozenset({_S.COMPLETED, _S.BLOCKED, _S.SKIPPED, _S.CANCELLED})
"""A subtask in one of these waits for nothing that the system itself would do."""
SUBTASK_FINAL: Final = frozenset({_S.COMPLETED, _S.CANCELLED})


def move_task(status: TaskStatus, event: TaskEvent) -> TaskStatus:
    """The status after an event. Raises Stale (``ILLEGAL_TRANSITION``) when there is no such transition."""
    try:
        return TASK_MOVES[status, event]
    except KeyError:
        raise Stale("ILLEGAL_TRANSITION", f"a task that is {status} can't take the event {event}") from None


def move_subtask(status: SubtaskStatus, event: SubtaskEvent) -> SubtaskStatus:
    """The status after an event. Raises Stale (``ILLEGAL_TRANSITION``) when there is no such transition."""
    try:
        return SUBTASK_MOVES[status, event]
    except KeyError:
        raise Stale("ILLEGAL_TRANSITION", f"a subtask that is {status} can't take the event {event}") from None


def legal_pairs(
    moves: Mapping[tuple[TaskStatus, TaskEvent], TaskStatus]
    | Mapping[tuple[SubtaskStatus, SubtaskEvent], SubtaskStatus],
) -> list[str]:
    """Every ``FROM>TO`` pair of a table, sorted: what the database's guard lets pass."""
    return sorted({f"{source}>{target}" for (source, _), target in moves.items()})
