"""The record tells one unbroken story of each task and subtask, made of legal moves; a result is committed once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from rayloom.dag.states import SUBTASK_MOVES, TASK_MOVES, legal_pairs
from tests.chaos.case import FINAL, TERMINAL, Case, Violation, at
from tests.chaos.record import Subtask
from tests.chaos.rules import Rules

LEGAL: Final = {"subtask": frozenset(legal_pairs(SUBTASK_MOVES)), "task": frozenset(legal_pairs(TASK_MOVES))}


def _illegal(case: Case) -> Iterator[Violation]:
    for (task_id, kind, key), events in case.events.items():
        if kind == "approval":
            continue  # it tells who decided, beside the move that the decision made
        row = case.tasks.get(task_id) if kind == "task" else case.subtasks.get((task_id, key or ""))
        is_taken = isinstance(row, Subtask) and case.is_taken(row)
        is_at = "PENDING" if kind == "subtask" and not is_taken else None
        for event in events:
            where = {"task_id": task_id, "subtask": key or ""}
            if is_at in FINAL:
                yield Violation(rule="left a final state", what=f"{is_at} -> {event.target}", **where)
            elif event.source != is_at:
                yield Violation(
                    rule="broken history", what=f"event {event.id} starts at {event.source}, not {is_at}", **where
                )
            elif event.source not in (None, event.target) and f"{event.source}>{event.target}" not in LEGAL[kind]:
                yield Violation(rule="illegal move", what=f"{event.source} -> {event.target}", **where)
            elif event.source is None and kind == "subtask" and event.target != "COMPLETED":
                yield Violation(rule="illegal move", what=f"began as {event.target}", **where)
            is_at = event.target
        if row is not None and row.status != is_at:
            yield Violation(
                rule="broken history",
                task_id=task_id,
                subtask=key or "",
                what=f"its events end at {is_at}, not {row.status}",
            )


def _committed_twice(case: Case) -> Iterator[Violation]:
    for subtask in case.history.subtasks:
        commits = [each for each in case.of(subtask) if (each.source, each.target) == ("RUNNING", "COMPLETED")]
        logged = sorted(n for n, attempt in case.ended[subtask.id].items() if attempt.status == "COMPLETED")
        expected = [subtask.attempt] if subtask.status == "COMPLETED" and not case.is_taken(subtask) else []
        if len(commits) > 1 or len(logged) > 1:
            said = f"{len(commits)} events, attempts {logged}"
            yield Violation(rule="committed twice", what=said, **at(subtask))
        elif logged != expected:
            said = f"{subtask.status} at attempt {subtask.attempt}, and the attempts that completed are {logged}"
            yield Violation(rule="committed otherwise", what=said, **at(subtask))


def _attempts_in_order(case: Case) -> Iterator[Violation]:
    """Each start has a higher number than all before, also after a retry by hand or on a fallback."""
    for subtask in case.history.subtasks:
        numbers = [
            each.attempt or 0 for each in case.of(subtask) if (each.source, each.target) == ("QUEUED", "RUNNING")
        ]
        if any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
            yield Violation(rule="attempt numbers", what=f"began as {numbers}", **at(subtask))


def _unexplained(case: Case) -> Iterator[Violation]:
    """An attempt that began and is not the last one must have been lost or have failed, by the record."""
    for subtask in case.history.subtasks:
        events = case.of(subtask)
        began = {each.attempt or 0 for each in events if (each.source, each.target) == ("QUEUED", "RUNNING")}
        for number in sorted(began - {subtask.attempt}):
            ended = case.ended[subtask.id].get(number)
            status = None if ended is None else ended.status
            if status not in ("FAILED", "LOST", "TIMED_OUT", "CANCELLED"):
                said = f"attempt {number} of {subtask.attempt} ended as {status}"
                yield Violation(rule="unexplained attempt", what=said, **at(subtask))


def _fallbacks(case: Case) -> Iterator[Violation]:
    """An attempt runs the fallback if, and only if, its subtask had turned to it since somebody retried it."""
    for subtask in case.history.subtasks:
        turned = False
        for event in case.of(subtask):
            if event.target == "QUEUED" and event.source in ("FAILED", "BLOCKED"):
                turned = event.source == "FAILED" and (turned or event.reason == "fallback")
            begins = (event.source, event.target) == ("QUEUED", "RUNNING")
            if begins and ((event.attempt or 0) in subtask.on_fallback) != turned:
                said = f"attempt {event.attempt} ran {'its own tool' if turned else 'the fallback'}"
                yield Violation(rule="fallback", what=said, **at(subtask))


def _leases(case: Case) -> Iterator[Violation]:
    for subtask in case.history.subtasks:
        if subtask.held:
            yield Violation(rule="leaked lease", what=subtask.status, **at(subtask))
    for task in case.history.tasks:
        if task.held and task.status in TERMINAL:
            yield Violation(rule="leaked lease", task_id=task.id, what=task.status)


RULES: Final[Rules] = (_illegal, _committed_twice, _attempts_in_order, _unexplained, _fallbacks, _leases)
