"""The checker finds each violation in a history that was tampered with, and none in a sound one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.case import Violation
from tests.chaos.checker import check, story
from tests.chaos.record import Heard, History, Leftovers, Letter, Life, Mark, Webhook
from tests.unit.chaos.histories import GOOD, MISSING, RERUN, changed, moves, without

FROM_NOWHERE = [
    *without(GOOD.events, lambda e: e.subtask == "a"),
    *moves("a", (None, "COMPLETED", None), begin=14),
]
"""As of what a fork took over, in a task that is no fork."""
TAMPERED: dict[str, tuple[str, History]] = {
    "an accepted task is gone": (
        "lost", replace(GOOD, accepted=[*GOOD.accepted, replace(GOOD.accepted[0], task_id="u", title="two")]),
    ),
    "one submission made two tasks": (
        "submitted twice", replace(GOOD, tasks=[*GOOD.tasks, replace(GOOD.tasks[0], id="u")]),
    ),
    "a task did not end": ("stuck", replace(GOOD, tasks=changed(GOOD.tasks, lambda t: True, status="PROCESSING"))),
    "a subtask did not end": (
        "stuck", replace(GOOD, subtasks=changed(GOOD.subtasks, lambda s: s.key == "b", status="QUEUED")),
    ),
    "a task failed that should not": (
        "wrong end", replace(GOOD, tasks=changed(GOOD.tasks, lambda t: True, status="FAILED", result=None)),
    ),
    "a value is wrong": ("wrong end", replace(GOOD, tasks=changed(GOOD.tasks, lambda t: True, result={"value": 4}))),
    "it ran on after its end": (
        "left a final state", replace(GOOD, events=[*GOOD.events, *moves("a", ("COMPLETED", "FAILED", 1), begin=40)]),
    ),
    "it was committed after its cancellation": (
        "left a final state",
        replace(
            GOOD,
            events=[
                *without(GOOD.events, lambda e: e.id == 14),
                *moves("a", ("RUNNING", "CANCELLED", 1), ("CANCELLED", "COMPLETED", 1), begin=15),
            ],
        ),
    ),
    "a move is not in the table": (
        "illegal move",
        replace(GOOD, events=changed(GOOD.events, lambda e: e.id == 12, source="READY", target="RUNNING")),
    ),
    "an event is missing": ("broken history", replace(GOOD, events=without(GOOD.events, lambda e: e.id == 13))),
    "the row says something else than its events": (
        "broken history", replace(GOOD, events=without(GOOD.events, lambda e: e.id == 30)),
    ),
    "two events commit it": (
        "committed twice",
        replace(GOOD, events=[*GOOD.events, *moves("a", ("RUNNING", "COMPLETED", 1), begin=40)]),
    ),
    "two attempts completed": (
        "committed twice",
        replace(GOOD, attempts=changed(GOOD.attempts, lambda a: a.status == "LOST", status="COMPLETED")),
    ),
    "another attempt completed than the row's": (
        "committed otherwise", replace(GOOD, subtasks=changed(GOOD.subtasks, lambda s: s.key == "b", attempt=3)),
    ),
    "nothing tells which attempt completed": (
        "committed otherwise", replace(GOOD, attempts=without(GOOD.attempts, lambda a: a.sub_task_id == "A")),
    ),
    "it was completed from nowhere, and never ran": (
        "broken history",
        replace(
            GOOD,
            subtasks=changed(GOOD.subtasks, lambda s: s.key == "a", attempt=0),
            attempts=without(GOOD.attempts, lambda a: a.sub_task_id == "A"),
            marks=without(GOOD.marks, lambda m: m.sub_task_id == "A"),
            events=FROM_NOWHERE,
        ),
    ),
    "what was completed from nowhere was never committed": (
        "committed otherwise",
        replace(
            GOOD,
            attempts=without(GOOD.attempts, lambda a: a.sub_task_id == "A"),
            events=FROM_NOWHERE,
        ),
    ),
    "an attempt number came twice": (
        "attempt numbers", replace(GOOD, events=changed(GOOD.events, lambda e: e.id == 24, attempt=1)),
    ),
    "it began before its dependency was committed": (
        "started early", replace(GOOD, events=changed(GOOD.events, lambda e: e.id == 14, id=22)),
    ),
    "it began before its dependency was missing": (
        "started early", replace(MISSING, events=changed(MISSING.events, lambda e: e.id == 16, id=22)),
    ),
    "it went on without what must not be missing": (
        "started early",
        replace(MISSING, subtasks=changed(MISSING.subtasks, lambda s: s.key == "a", is_dispensable=False)),
    ),
    "nobody was asked": (
        "unapproved",
        replace(GOOD, subtasks=changed(GOOD.subtasks, lambda s: s.key == "a", wants_approval=True)),
    ),
    "nobody said yes": ("unapproved", replace(MISSING, events=without(MISSING.events, lambda e: e.id == 6))),
    "a lease stands on what has ended": (
        "leaked lease", replace(GOOD, subtasks=changed(GOOD.subtasks, lambda s: s.key == "a", held=True)),
    ),
    "a task that has ended is still being split": (
        "leaked lease", replace(GOOD, tasks=changed(GOOD.tasks, lambda t: True, held=True)),
    ),
    "an attempt ran twice": ("ledger", replace(GOOD, marks=[*GOOD.marks, Mark(sub_task_id="B", attempt=2, at=121)])),
    "what was committed never ran": (
        "ledger", replace(GOOD, marks=without(GOOD.marks, lambda m: (m.sub_task_id, m.attempt) == ("B", 2))),
    ),
    "somebody unknown ran": ("ledger", replace(GOOD, marks=[*GOOD.marks, Mark(sub_task_id="C", attempt=1, at=1)])),
    "an attempt ran that nobody ended, though no scheduler had died": (
        "ledger",
        replace(
            GOOD,
            attempts=without(GOOD.attempts, lambda a: a.status == "LOST"),
            events=without(GOOD.events, lambda e: e.id in (21, 22, 23)),
            lives=[Life(started_at=90, heard_at=130, ended_at=None)],
        ),
    ),
    "an attempt ran that nobody ended, long before its scheduler died": (
        "ledger",
        replace(
            GOOD,
            attempts=without(GOOD.attempts, lambda a: a.status == "LOST"),
            events=without(GOOD.events, lambda e: e.id in (21, 22, 23)),
            lives=[Life(started_at=20, heard_at=160, ended_at=161)],
        ),
    ),
    "an attempt ran that never began": (
        "ledger", replace(GOOD, marks=[*GOOD.marks, Mark(sub_task_id="B", attempt=3, at=105)]),
    ),
    "an attempt was repeated for no reason": (
        "unexplained attempt", replace(GOOD, attempts=without(GOOD.attempts, lambda a: a.status == "LOST")),
    ),
    "something is still in flight": ("left behind", replace(GOOD, leftovers=Leftovers(in_flight=1))),
    "something is not committed": ("left behind", replace(GOOD, leftovers=Leftovers(uncommitted=1))),
    "a reservation is left": ("left behind", replace(GOOD, leftovers=Leftovers(reservations=1))),
    "a blob is left": ("left behind", replace(GOOD, leftovers=Leftovers(orphan_blobs=1))),
    "an id is left in Redis": ("left behind", replace(GOOD, leftovers=Leftovers(redis_ids=("x",)))),
    "a webhook waits": ("left behind", replace(GOOD, leftovers=Leftovers(untold_webhooks=1))),
    "a sandbox is left": ("left behind", replace(GOOD, leftovers=Leftovers(sandboxes=("bwrap",)))),
}  # fmt: skip


RERUN_TAMPERED: dict[str, tuple[str, History]] = {
    "the same request made another task": (
        "submitted twice",
        replace(RERUN, accepted=changed(RERUN.accepted, lambda a: a.task_id == "t", again=("t", "u"))),
    ),
    "one fork was made twice": (
        "submitted twice", replace(RERUN, tasks=[*RERUN.tasks, replace(RERUN.tasks[1], id="g")]),
    ),
    "a retry had the number of an earlier attempt": (
        "attempt numbers", replace(RERUN, events=changed(RERUN.events, lambda e: e.id == 17, attempt=1)),
    ),
    "it was seen outside before its dependency was committed": (
        "started early", replace(RERUN, marks=changed(RERUN.marks, lambda m: m.sub_task_id == "B", at=49)),
    ),
    "it called before its dependency was committed": (
        "started early", replace(RERUN, calls=changed(RERUN.calls, lambda c: c.status == 503, at=49)),
    ),
    "it called more often than it had attempts": ("ledger", replace(RERUN, calls=[*RERUN.calls, RERUN.calls[0]])),
    "it completed and was answered badly": (
        "ledger", replace(RERUN, calls=without(RERUN.calls, lambda c: c.status == 200)),
    ),
    "somebody unknown called": (
        "ledger", replace(RERUN, calls=[*RERUN.calls, replace(RERUN.calls[0], sub_task_id="Z")]),
    ),
    "what was retried has an open letter": ("letters", replace(RERUN, letters=[Letter(id="A", status="open")])),
    "what was retried has no letter": ("letters", replace(RERUN, letters=[])),
    "what is blocked has no letter": ("letters", replace(MISSING, letters=[])),
    "what never was blocked has a letter": ("letters", replace(GOOD, letters=[Letter(id="A", status="open")])),
    "a retry revived nothing": (
        "skipped",
        replace(
            RERUN,
            subtasks=changed(RERUN.subtasks, lambda s: s.id == "B", status="SKIPPED", attempt=0),
            events=without(RERUN.events, lambda e: e.task_id == "t" and e.subtask == "b" and e.id > 21),
        ),
    ),
    "it completed below what is blocked": (
        "skipped", replace(MISSING, subtasks=changed(MISSING.subtasks, lambda s: s.key == "a", is_dispensable=False)),
    ),
    "a fork is one of nothing": (
        "fork", replace(RERUN, tasks=changed(RERUN.tasks, lambda t: t.id == "f", forked_from="")),
    ),
    "a fork is one of what has not ended": (
        "fork", replace(RERUN, tasks=changed(RERUN.tasks, lambda t: t.id == "t", status="PROCESSING")),
    ),
    "a fork has a subtask that its original has not": (
        "fork", replace(RERUN, subtasks=without(RERUN.subtasks, lambda s: s.id == "A")),
    ),
    "a fork ran what it took over": (
        "fork", replace(RERUN, marks=[*RERUN.marks, Mark(sub_task_id="FA", attempt=1, at=140)]),
    ),
    "a fork took over what it was to run": (
        "fork", replace(RERUN, accepted=changed(RERUN.accepted, lambda a: a.task_id == "f", anew=("a",))),
    ),
    "a fork ran what it could have taken over": (
        "fork",
        replace(
            RERUN,
            events=[
                *without(RERUN.events, lambda e: e.id == 54),
                *moves("a", ("PENDING", "READY", None), ("READY", "QUEUED", None), begin=80, task="f"),
            ],
        ),
    ),
    "what was taken over began as something else": (
        "illegal move", replace(RERUN, events=changed(RERUN.events, lambda e: e.id == 54, target="READY")),
    ),
    "a rejected plan ran": (
        "unapproved", replace(RERUN, marks=[*RERUN.marks, Mark(sub_task_id="P", attempt=1, at=90)]),
    ),
    "a plan went on without approval": (
        "unapproved",
        replace(RERUN, events=changed(RERUN.events, lambda e: e.id == 73, target="PROCESSING")),
    ),
    "a rejected subtask ran": (
        "unapproved",
        replace(MISSING, events=changed(MISSING.events, lambda e: e.id == 6, target="BLOCKED")),
    ),
    "it was seen outside before it was approved": (
        "unapproved", replace(MISSING, marks=changed(MISSING.marks, lambda m: m.sub_task_id == "A", at=49)),
    ),
    "an end was not posted": ("webhooks", replace(RERUN, webhooks=without(RERUN.webhooks, lambda w: w.id == "h1"))),
    "an end was posted that nobody wanted told": (
        "webhooks",
        replace(
            RERUN,
            webhooks=[*RERUN.webhooks, Webhook(id="h3", task_id="f", task_status="COMPLETED", status="delivered")],
            heard=[*RERUN.heard, Heard(id="h3", task_id="f", task_status="COMPLETED", body="z")],
        ),
    ),
    "an end was given up": (
        "webhooks", replace(RERUN, webhooks=changed(RERUN.webhooks, lambda w: w.id == "h1", status="failed")),
    ),
    "an end is delivered, and nobody heard it": (
        "webhooks", replace(RERUN, heard=without(RERUN.heard, lambda h: h.id == "h2")),
    ),
    "an end was heard that nobody posted": (
        "webhooks", replace(RERUN, heard=[*RERUN.heard, replace(RERUN.heard[0], id="h9")]),
    ),
    "one id told of two ends": (
        "webhooks", replace(RERUN, heard=changed(RERUN.heard, lambda h: h.id == "h2", task_status="FAILED")),
    ),
    "one id had two bodies": (
        "webhooks", replace(RERUN, heard=[*RERUN.heard, replace(RERUN.heard[2], body="other")]),
    ),
    "a signature was wrong": (
        "webhooks", replace(RERUN, heard=changed(RERUN.heard, lambda h: h.id == "h2", is_signed=False)),
    ),
}  # fmt: skip
TAMPERED |= RERUN_TAMPERED


@pytest.mark.parametrize("history", [GOOD, MISSING, RERUN])
def test_a_sound_history_has_no_violation(history: History) -> None:
    assert check(history) == []


@pytest.mark.parametrize("how", TAMPERED)
def test_a_violation_is_found(how: str) -> None:
    rule, history = TAMPERED[how]
    assert rule in {violation.rule for violation in check(history)}


def test_a_call_under_a_scheduler_that_died_needs_no_end_of_its_own() -> None:
    freed = replace(
        GOOD,
        attempts=without(GOOD.attempts, lambda a: a.status == "LOST"),
        events=without(GOOD.events, lambda e: e.id in (21, 22, 23)),
    )
    assert check(freed) == []


def test_the_story_of_a_violation_tells_its_events_attempts_and_calls() -> None:
    told = "\n".join(story(GOOD, Violation(rule="any", task_id="t", subtask="b")))
    assert "event 22: subtask b RUNNING -> FAILED" in told
    assert "SCHEDULER_LOST" in told
    assert "Mark(sub_task_id='B', attempt=2" in told
    assert "subtask a" not in told
