"""The checker on fallbacks: a call that turned to its fallback needs no answer, and no other goes without one."""

from __future__ import annotations

from dataclasses import replace

from tests.chaos.checker import check
from tests.chaos.plans import CALL
from tests.chaos.record import Attempt, Call, History, Subtask, Task
from tests.unit.chaos.histories import changed, moves

TURNED = History(
    accepted=[],
    tasks=[Task(id="t", title="one", status="COMPLETED", result=1)],
    subtasks=[
        Subtask(id="A", task_id="t", key="a", tool=CALL, status="COMPLETED", attempt=3, on_fallback=(3,)),
    ],
    attempts=[
        Attempt(sub_task_id="A", attempt=1, status="FAILED", code="HTTP_503"),
        Attempt(sub_task_id="A", attempt=2, status="FAILED", code="BREAKER_OPEN"),
        Attempt(sub_task_id="A", attempt=3, status="COMPLETED"),
    ],
    events=[
        *moves(None, (None, "PENDING", None), ("PENDING", "SPLITTING", None), ("SPLITTING", "READY", None), begin=1),
        *moves(None, ("READY", "PROCESSING", None), ("PROCESSING", "COMPLETED", None), begin=4),
        *moves("a", ("PENDING", "READY", None), ("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), begin=10),
        *moves("a", ("RUNNING", "FAILED", 1), ("FAILED", "QUEUED", 1), ("QUEUED", "RUNNING", 2), begin=13),
        *moves("a", ("RUNNING", "FAILED", 2), begin=16),
        *changed(moves("a", ("FAILED", "QUEUED", 2), begin=17), lambda e: True, reason="fallback"),
        *moves("a", ("QUEUED", "RUNNING", 3), ("RUNNING", "COMPLETED", 3), begin=18),
    ],
    marks=[],
    calls=[Call(sub_task_id="A", at=100, status=503)],
)
"""A call that was refused, found the breaker open when it came again, and turned to its fallback."""


def broken(history: History) -> set[str]:
    """The rules that are broken in it."""
    return {violation.rule for violation in check(history)}


def test_a_call_that_turned_to_its_fallback_is_sound() -> None:
    assert broken(TURNED) == set()


def test_a_call_that_completed_by_itself_without_an_answer_is_found() -> None:
    own = replace(TURNED, subtasks=changed(TURNED.subtasks, lambda s: True, on_fallback=()))
    assert "ledger" in broken(own)


def test_a_call_by_an_attempt_that_ran_the_fallback_is_found() -> None:
    assert "ledger" in broken(replace(TURNED, calls=[*TURNED.calls] * 3))


def test_a_fallback_that_nobody_turned_to_is_found() -> None:
    unturned = replace(TURNED, events=changed(TURNED.events, lambda e: e.id == 17, reason="retry"))
    assert broken(unturned) == {"fallback"}


def test_an_attempt_at_its_own_tool_after_it_turned_is_found() -> None:
    back = replace(TURNED, subtasks=changed(TURNED.subtasks, lambda s: True, on_fallback=()))
    assert "fallback" in broken(back)
