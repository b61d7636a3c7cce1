"""Holds the history of a run against every guarantee: gives what is wrong with it, each with the story of its case."""

from __future__ import annotations

from tests.chaos.case import Case, Violation
from tests.chaos.record import History
from tests.chaos.rules import ends, ledger, limits, moves, outside, reruns, retries, starts

RULES = (
    *ends.RULES, *moves.RULES, *starts.RULES, *ledger.RULES, *reruns.RULES, *retries.RULES, *limits.RULES,
    *outside.RULES,
)  # fmt: skip


def check(history: History) -> list[Violation]:
    """Every violation; none where all promises were kept."""
    case = Case(history)
    return [violation for rule in RULES for violation in rule(case)]


def story(history: History, violation: Violation) -> list[str]:
    """All that is known of the task or subtask of a violation, in order."""
    lines = [
        f"{event.at.isoformat()} event {event.id}: {event.kind} {event.subtask or ''} {event.source} -> {event.target}"
        f" attempt {event.attempt} {event.reason or ''}"
        for event in history.events
        if event.task_id == violation.task_id and event.subtask in (None, violation.subtask)
    ]
    lines += [str(each) for each in history.accepted if each.task_id == violation.task_id]
    for subtask in history.subtasks:
        if subtask.task_id == violation.task_id and subtask.key == violation.subtask:
            lines.append(str(subtask))
            lines += [str(each) for each in history.attempts if each.sub_task_id == subtask.id]
            lines += [str(each) for each in history.letters if each.id == subtask.id]
            lines += [str(each) for each in history.marks if each.sub_task_id == subtask.id]
            lines += [str(each) for each in history.calls if each.sub_task_id == subtask.id]
    if not violation.subtask:
        lines += [str(each) for each in history.webhooks if each.task_id == violation.task_id]
        lines += [str(each) for each in history.heard if each.task_id == violation.task_id]
    return lines
