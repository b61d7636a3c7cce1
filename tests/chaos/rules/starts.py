"""Nothing starts before all that it waits for, and nothing without the approval that it wants: by record and ledger."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.chaos.case import Case, Violation, at
from tests.chaos.record import Event, Subtask
from tests.chaos.rules import Rules


def _early(case: Case) -> Iterator[Violation]:
    for subtask in case.history.subtasks:
        for event in case.of(subtask):
            if event.target != "RUNNING" or event.source == "RUNNING":
                continue
            early = [key for key in subtask.after if (done := _done(case, subtask, key)) is None or done.id >= event.id]
            if early:
                yield Violation(rule="started early", what=f"before {', '.join(early)}", **at(subtask))
        # The clock of the database is that of this machine; an event's time is before its commit.
        for seen in case.times(subtask):
            early = [
                key
                for key in subtask.after
                if (done := _done(case, subtask, key)) is None or done.at.timestamp() > seen
            ]
            if early:
                said = f"seen outside at {seen:.3f}, before {', '.join(early)}"
                yield Violation(rule="started early", what=said, **at(subtask))


def _done(case: Case, subtask: Subtask, key: str) -> Event | None:
    return case.done.get((subtask.task_id, key))


def _unapproved(case: Case) -> Iterator[Violation]:
    """What wants approval is queued by nothing else, and who gave it stands in the record, once."""
    for subtask in case.history.subtasks:
        if not subtask.wants_approval:
            continue
        first = [each for each in case.of(subtask) if each.source in ("READY", "AWAITING_APPROVAL")]
        freed = [each.source for each in first if each.target == "QUEUED"]
        told = case.events.get((subtask.task_id, "approval", subtask.key), [])
        given = [each for each in told if each.target == "QUEUED"]
        if "READY" in freed or len(freed) != len(given) or len(given) > 1:
            said = f"queued from {freed or 'nowhere'}, with {len(given)} approvals"
            yield Violation(rule="unapproved", what=said, **at(subtask))
        yield from _only_after(case, subtask, given[0] if given else None)


def _unapproved_plans(case: Case) -> Iterator[Violation]:
    for task in case.history.tasks:
        if not task.wants_approval:
            continue
        told = case.events.get((task.id, "approval", None), [])
        given = [each for each in told if each.target == "PROCESSING"]
        moved = [each for each in case.events.get((task.id, "task", None), []) if each.source == "READY"]
        if len(given) != sum(each.target == "PROCESSING" for each in moved) or len(given) > 1:
            yield Violation(rule="unapproved", task_id=task.id, what=f"{len(given)} approvals of its plan")
        for subtask in case.of_task[task.id]:
            if not case.is_taken(subtask):
                yield from _only_after(case, subtask, given[0] if given else None)


def _only_after(case: Case, subtask: Subtask, approval: Event | None) -> Iterator[Violation]:
    """Whatever runs, and whatever is seen of it outside, comes after the approval; without one there is nothing."""
    started = [each for each in case.of(subtask) if each.target == "RUNNING"]
    if any(approval is None or each.id < approval.id for each in started):
        yield Violation(rule="unapproved", what="it began before it was approved", **at(subtask))
    if any(approval is None or seen < approval.at.timestamp() for seen in case.times(subtask)):
        yield Violation(rule="unapproved", what="it was seen outside before it was approved", **at(subtask))


RULES: Final[Rules] = (_early, _unapproved, _unapproved_plans)
