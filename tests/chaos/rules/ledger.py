"""What was seen outside agrees with the record: each attempt ran once at most, and what was committed has run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.chaos.case import Case, Violation, at
from tests.chaos.plans import CALL
from tests.chaos.rules import Rules

STOPPED_S: Final = 30.0
"""After so long nothing of a cancelled task begins any more. As a rule it is a second: what runs is asked to stop, and
killed after 0.8 s. But in a chaos run that may come late by as much as the API, or PostgreSQL, was stopped between the
event and its commit (6 s), the scheduler before it told the worker (6 s), and the worker before it could hear (6 s); or
the scheduler is killed just then, and its attempts end when Ray notices, at the latest as its lease runs out (10 s)."""


def _marks(case: Case) -> Iterator[Violation]:
    for sub_task_id in case.marks.keys() - case.by_id.keys():
        yield Violation(rule="ledger", what=f"a call for {sub_task_id}, which nobody knows")
    for subtask in case.history.subtasks:
        if subtask.tool != case.history.marking or case.is_taken(subtask):
            continue
        marks, ended = case.marks[subtask.id], case.ended[subtask.id]
        for number, count in Counter(mark.attempt for mark in marks).items():
            if count > 1:
                yield Violation(rule="ledger", what=f"attempt {number} ran {count} times", **at(subtask))
        if subtask.status == "COMPLETED" and all(mark.attempt != subtask.attempt for mark in marks):
            said = f"attempt {subtask.attempt} was committed and never ran"
            yield Violation(rule="ledger", what=said, **at(subtask))
        for mark in marks:
            if mark.attempt not in ended and not case.is_covered(mark.at):
                said = f"attempt {mark.attempt} ran, and nothing tells its end"
                yield Violation(rule="ledger", what=said, **at(subtask))
            if mark.attempt > subtask.attempt:
                yield Violation(rule="ledger", what=f"attempt {mark.attempt} ran, which never began", **at(subtask))


def _calls(case: Case) -> Iterator[Violation]:
    """A request carries no attempt number: there are no more than attempts of its tool, and one that was committed was
    answered well."""
    for sub_task_id in case.calls.keys() - case.by_id.keys():
        yield Violation(rule="ledger", what=f"a request for {sub_task_id}, which nobody knows")
    for subtask in case.history.subtasks:
        if subtask.tool != CALL or case.is_taken(subtask):
            continue
        calls = case.calls[subtask.id]
        could = subtask.attempt - len(subtask.on_fallback)
        if len(calls) > could:
            said = f"{len(calls)} requests in {could} attempts"
            yield Violation(rule="ledger", what=said, **at(subtask))
        fell_back = subtask.attempt in subtask.on_fallback
        if subtask.status == "COMPLETED" and not fell_back and all(each.status != 200 for each in calls):
            said = "it completed, and no request of it was answered well"
            yield Violation(rule="ledger", what=said, **at(subtask))


def _cancelled(case: Case) -> Iterator[Violation]:
    for subtask in case.history.subtasks:
        ends = [*case.of(subtask), *case.events.get((subtask.task_id, "task", None), [])]
        cancelled = [each.at.timestamp() for each in ends if each.target == "CANCELLED"]
        late = [seen for seen in case.times(subtask) if cancelled and seen > min(cancelled) + STOPPED_S]
        if late:
            said = f"cancelled at {min(cancelled):.3f}, and seen outside until {max(late):.3f}"
            yield Violation(rule="ran on", what=said, **at(subtask))


RULES: Final[Rules] = (_marks, _calls, _cancelled)
