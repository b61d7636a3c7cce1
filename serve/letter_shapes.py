"""How dead letters are shown, and why one can't be retried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rayloom.dag.states import TASK_FINAL, SubtaskStatus
from rayloom.db.letters import LetterGroup
from rayloom.db.reads import Record
from rayloom.serve.problems import Problem
from rayloom.serve.shapes import Shown, attempt


def letter(row: Record) -> Shown:
    """A letter in a list: its attempts counted, its input unless it is large."""
    return {
        "id": row.id,
        "task_id": row.task_id,
        "subtask": row.subtask,
        "tool": row.tool or None,
        "error": row.error,
        "fingerprint": row.fingerprint,
        "input": row.input,
        "attempts": row.attempts,
        "status": row.status,
        "at": row.at,
    }


def letter_in_full(row: Record, attempts: Sequence[Record], given: Mapping[str, object]) -> Shown:
    """One letter, with all attempts and what is told of its whole input (``given``)."""
    shown = letter(row)
    shown |= given
    shown["attempts"] = [attempt(each, row) for each in attempts]
    shown["updated_at"] = row.updated_at
    return shown


def group(of: LetterGroup) -> Shown:
    """Letters of one cause."""
    return {"fingerprint": of.fingerprint, "count": of.count, "sample": letter(of.sample)}


DEADLINE_PASSED = (
    "the task's deadline has passed: give it a new one with POST /api/v1/tasks/{id}/retry and `budget.deadline_s`"
)
ENDED_BY_DEADLINE = (
    "the task was ended by its deadline, and what had not completed was cancelled for good: fork the task instead"
)
MISSING = "the others went on without this subtask, as its `on_failure` wants it: fork the task to run it anew"
REJECTED = (
    "the subtask was rejected, and a retry must not go past that: fork the task, and its approval is asked for anew"
)
APPROVED = (
    "the subtask was approved with the input that it has: retry it with that, or fork the task with another one, and "
    "its approval is asked for anew"
)


def refused_retry(row: Record) -> Problem | None:
    """The 409 of a letter that can't be retried as it is now; None when nothing is known against it."""
    if row.status == "discarded":
        return Problem(409, "the letter was discarded", code="LETTER_DISCARDED")
    if row.subtask_status != SubtaskStatus.BLOCKED:
        return Problem(409, f"the letter was retried: its subtask is {row.subtask_status}", code="WRONG_STATE")
    if row.has_stand_in:
        return Problem(409, MISSING, code="MISSING")
    if row.attempts == 0:
        return Problem(409, REJECTED, code="REJECTED")
    if row.task_status in TASK_FINAL:
        return Problem(409, f"the task is {row.task_status}, and nothing of it can run any more", code="WRONG_STATE")
    if (row.task_error or {}).get("code") == "DEADLINE_EXCEEDED":
        return Problem(409, ENDED_BY_DEADLINE, code="DEADLINE_EXCEEDED")
    return None
