"""A history, by what it is of; and what is wrong with one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from tests.chaos.plans import TIMEOUT_S
from tests.chaos.record import Attempt, Call, Event, History, Mark, Subtask

TERMINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
SETTLED: Final = frozenset({"COMPLETED", "BLOCKED", "SKIPPED", "CANCELLED"})
FINAL: Final = frozenset({"COMPLETED", "CANCELLED"})
LATE_S: Final = 60.0
"""A scheduler that was stopped is declared dead so long after, at most; and clocks of two processes may differ."""
SLACK_S: Final = 15.0
"""So long after its time limit the end of a call is written down, at most, while its scheduler lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A broken promise: which, of what, and what was seen instead."""

    rule: str
    task_id: str = ""
    subtask: str = ""
    what: str = ""


class Case:
    """The history, by what it is of."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.tasks = {task.id: task for task in history.tasks}
        self.subtasks = {(each.task_id, each.key): each for each in history.subtasks}
        self.of_task: dict[str, list[Subtask]] = defaultdict(list)
        for each in history.subtasks:
            self.of_task[each.task_id].append(each)
        self.by_id = {each.id: each for each in history.subtasks}
        self.events: dict[tuple[str, str, str | None], list[Event]] = defaultdict(list)
        for event in sorted(history.events, key=lambda each: each.id):
            self.events[event.task_id, event.kind, event.subtask].append(event)
        self.ended: dict[str, dict[int, Attempt]] = defaultdict(dict)
        for attempt in history.attempts:
            self.ended[attempt.sub_task_id][attempt.attempt] = attempt
        self.marks: dict[str, list[Mark]] = defaultdict(list)
        for mark in history.marks:
            self.marks[mark.sub_task_id].append(mark)
        self.calls: dict[str, list[Call]] = defaultdict(list)
        for call in history.calls:
            self.calls[call.sub_task_id].append(call)
        self.done = {
            (event.task_id, event.subtask): event
            for event in history.events
            if event.kind == "subtask"
            and (event.target == "COMPLETED" or (event.target == "BLOCKED" and self._is_dispensable(event)))
        }
        """What lets the dependents of each subtask start: that its result is committed, or that it is missing."""

    def of(self, subtask: Subtask) -> list[Event]:
        """The transitions of a subtask."""
        return self.events.get((subtask.task_id, "subtask", subtask.key), [])

    def is_taken(self, subtask: Subtask) -> bool:
        """Whether it was taken over by a fork: it never was in any other state here. Elsewhere nothing can be."""
        task, events = self.tasks.get(subtask.task_id), self.of(subtask)
        return task is not None and bool(task.forked_from) and bool(events) and events[0].source is None

    def times(self, subtask: Subtask) -> list[float]:
        """When something was seen of it outside, in seconds since the epoch."""
        return [each.at for each in self.marks.get(subtask.id, [])] + [
            each.at for each in self.calls.get(subtask.id, [])
        ]

    def is_covered(self, at: float) -> bool:
        """Whether a scheduler died under a call of that time: nobody was left to write down how it ended.

        Such a call was under way when the scheduler was last heard of, or began after that. (It was heard of no later
        than it died, and no later than PostgreSQL was away, when outcomes wait for their commit.)
        """
        return any(
            life.ended_at is not None
            and max(life.started_at, life.heard_at - TIMEOUT_S - SLACK_S) <= at <= life.ended_at + LATE_S
            for life in self.history.lives
        )

    def _is_dispensable(self, event: Event) -> bool:
        subtask = self.subtasks.get((event.task_id, event.subtask or ""))
        return subtask is not None and subtask.is_dispensable


def at(subtask: Subtask) -> dict[str, str]:
    """Where a violation is that is one of this subtask."""
    return {"task_id": subtask.task_id, "subtask": subtask.key}
