"""What is run again by hand: letters name what is BLOCKED, retries revive what was skipped, forks keep the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tests.chaos.case import TERMINAL, Case, Violation, at
from tests.chaos.record import Subtask, Task
from tests.chaos.rules import Rules


def _letters(case: Case) -> Iterator[Violation]:
    """What is BLOCKED has a letter that nobody has answered, and each letter that was answered is of what went on."""
    letters = {letter.id: letter.status for letter in case.history.letters}
    for subtask in case.history.subtasks:
        status = letters.get(subtask.id)
        was_blocked = any(each.target == "BLOCKED" for each in case.of(subtask))
        if subtask.status == "BLOCKED":
            expected: tuple[str | None, ...] = ("open", "discarded")
        else:
            expected = ("retried",) if was_blocked else (None,)
        if status not in expected:
            yield Violation(rule="letters", what=f"{subtask.status}, and its letter is {status}", **at(subtask))


def _skipped(case: Case) -> Iterator[Violation]:
    """What is SKIPPED is below what is BLOCKED now: a retry revives the others. And nothing goes on below it."""
    for subtask in case.history.subtasks:
        above = [found for key in subtask.after if (found := case.subtasks.get((subtask.task_id, key))) is not None]
        holding = [each.key for each in above if each.status == "SKIPPED" or _holds(each)]
        if subtask.status == "SKIPPED" and not holding:
            yield Violation(rule="skipped", what="nothing that it waits for is BLOCKED or SKIPPED", **at(subtask))
        if subtask.status == "COMPLETED" and holding:
            yield Violation(rule="skipped", what=f"COMPLETED without {', '.join(holding)}", **at(subtask))


def _holds(subtask: Subtask) -> bool:
    return subtask.status == "BLOCKED" and not subtask.is_dispensable


def _forks(case: Case) -> Iterator[Violation]:
    for accepted in case.history.accepted:
        fork, original = case.tasks.get(accepted.task_id), case.tasks.get(accepted.fork_of)
        if fork is None or original is None:
            continue
        if fork.forked_from != original.id:
            said = f"a fork of {fork.forked_from or 'nothing'}, not of {original.id}"
            yield Violation(rule="fork", task_id=fork.id, what=said)
        if original.status not in TERMINAL:
            yield Violation(rule="fork", task_id=fork.id, what=f"its original, {original.id}, is {original.status}")
            continue
        # It was forked when it had ended, and went on no more: what it has completed now it had completed then.
        anew = _below(case, original, accepted.anew)
        for subtask in case.of_task[fork.id]:
            source = case.subtasks.get((original.id, subtask.key))
            if source is None:
                yield Violation(rule="fork", what="nothing of its original", **at(subtask))
                continue
            may_be_taken = subtask.key not in anew
            if case.is_taken(subtask) != may_be_taken:
                how = "not taken over" if may_be_taken else "taken over"
                yield Violation(rule="fork", what=f"{how}, and {source.status} in its original", **at(subtask))


def _below(case: Case, original: Task, first: Iterable[str]) -> set[str]:
    """What a fork runs anew: ``first``, what has not completed, and all that depends on either."""
    subtasks = case.of_task[original.id]
    anew = {*first, *(each.key for each in subtasks if each.status != "COMPLETED")}
    while more := {each.key for each in subtasks if not anew.isdisjoint(each.after)} - anew:
        anew |= more
    return anew


def _rerun(case: Case) -> Iterator[Violation]:
    """What was taken over has run in the original, and nowhere else."""
    for subtask in case.history.subtasks:
        if case.is_taken(subtask) and (case.times(subtask) or case.ended[subtask.id] or len(case.of(subtask)) > 1):
            yield Violation(rule="fork", what="it was taken over, and ran", **at(subtask))


RULES: Final[Rules] = (_letters, _skipped, _forks, _rerun)
