"""Every accepted task is there, once, and comes to its right end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.chaos.case import SETTLED, TERMINAL, Case, Violation
from tests.chaos.rules import Rules


def _lost(case: Case) -> Iterator[Violation]:
    for accepted in case.history.accepted:
        if accepted.task_id not in case.tasks:
            yield Violation(rule="lost", task_id=accepted.task_id, what=f"{accepted.title} was answered 202")


def _submitted_twice(case: Case) -> Iterator[Violation]:
    # A fork has the title of its original, of which the driver forks each once.
    for (title, of), count in Counter((task.title, task.forked_from) for task in case.history.tasks).items():
        if count > 1:
            yield Violation(rule="submitted twice", what=f"{title}{' as a fork' if of else ''}: {count} tasks")
    for accepted in case.history.accepted:
        if others := set(accepted.again) - {accepted.task_id}:
            said = f"sent again it was answered with {sorted(others)}"
            yield Violation(rule="submitted twice", task_id=accepted.task_id, what=said)


def _stuck(case: Case) -> Iterator[Violation]:
    for task in case.history.tasks:
        if task.status not in TERMINAL:
            yield Violation(rule="stuck", task_id=task.id, what=f"{task.title} is {task.status}")
    for subtask in case.history.subtasks:
        if subtask.status not in SETTLED:
            yield Violation(rule="stuck", task_id=subtask.task_id, subtask=subtask.key, what=subtask.status)


def _wrong_end(case: Case) -> Iterator[Violation]:
    for accepted in case.history.accepted:
        task = case.tasks.get(accepted.task_id)
        if task is None or task.status not in TERMINAL:
            continue
        if task.status not in accepted.ends:
            expected = " or ".join(sorted(accepted.ends))
            yield Violation(rule="wrong end", task_id=task.id, what=f"{task.status}, expected {expected}")
        elif task.status == "COMPLETED" and task.result != accepted.result:
            yield Violation(rule="wrong end", task_id=task.id, what=f"{task.result}, expected {accepted.result}")


RULES: Final[Rules] = (_lost, _submitted_twice, _stuck, _wrong_end)
