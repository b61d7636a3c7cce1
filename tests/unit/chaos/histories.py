"""Histories in which every promise was kept, and ways to tamper with one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from tests.chaos.plans import CALL, TOOL
from tests.chaos.record import (
    Accepted,
    Attempt,
    Call,
    Event,
    Heard,
    History,
    Letter,
    Life,
    Mark,
    Subtask,
    Task,
    Webhook,
)

AT = datetime.fromtimestamp(50, UTC)
"""Of all events; what is seen outside is later."""
T = TypeVar("T")


def moves(key: str | None, *steps: tuple[str | None, str, int | None], begin: int, task: str = "t") -> list[Event]:
    """Events of a subtask, or of the task, from an id on."""
    kind = "task" if key is None else "subtask"
    return [
        Event(id=begin + i, at=AT, task_id=task, kind=kind, subtask=key, source=source, target=target, attempt=attempt)
        for i, (source, target, attempt) in enumerate(steps)
    ]


def sound() -> History:
    """Two subtasks, of which the second one lost its first attempt, to a scheduler that died."""
    return History(
        accepted=[Accepted(task_id="t", title="one", ends=frozenset({"COMPLETED"}), result={"value": 3})],
        tasks=[Task(id="t", title="one", status="COMPLETED", result={"value": 3})],
        subtasks=[
            Subtask(id="A", task_id="t", key="a", tool=TOOL, status="COMPLETED", attempt=1),
            Subtask(id="B", task_id="t", key="b", tool=TOOL, status="COMPLETED", attempt=2, after=("a",)),
        ],
        attempts=[
            Attempt(sub_task_id="A", attempt=1, status="COMPLETED"),
            Attempt(sub_task_id="B", attempt=1, status="LOST", code="SCHEDULER_LOST"),
            Attempt(sub_task_id="B", attempt=2, status="COMPLETED"),
        ],
        events=[
            *moves(None, (None, "PENDING", None), ("PENDING", "SPLITTING", None), begin=1),
            *moves(None, ("SPLITTING", "READY", None), ("READY", "PROCESSING", None), begin=3),
            *moves("a", ("PENDING", "READY", None), ("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), begin=11),
            *moves("a", ("RUNNING", "COMPLETED", 1), begin=14),
            *moves("b", ("PENDING", "READY", None), begin=10),
            *moves("b", ("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), ("RUNNING", "FAILED", 1), begin=20),
            *moves("b", ("FAILED", "QUEUED", 1), ("QUEUED", "RUNNING", 2), ("RUNNING", "COMPLETED", 2), begin=23),
            *moves(None, ("PROCESSING", "COMPLETED", None), begin=30),
        ],
        marks=[
            Mark(sub_task_id="A", attempt=1, at=100),
            Mark(sub_task_id="B", attempt=1, at=110),
            Mark(sub_task_id="B", attempt=2, at=120),
        ],
        lives=[Life(started_at=20, heard_at=109, ended_at=111), Life(started_at=112, heard_at=130, ended_at=None)],
    )


def changed(all_: Sequence[T], which: Callable[[T], bool], **fields: object) -> list[T]:
    """The same with other ``fields`` in those that ``which`` names."""
    assert any(which(each) for each in all_)
    return [replace(each, **fields) if which(each) else each for each in all_]  # type: ignore[type-var]  # dataclasses


def without(all_: Sequence[T], which: Callable[[T], bool]) -> list[T]:
    """Those that ``which`` does not name."""
    assert any(which(each) for each in all_)
    return [each for each in all_ if not which(each)]


def with_a_missing_one() -> History:
    """The first subtask was approved, began, and is missing; the second one goes on without it."""
    good = sound()
    return replace(
        good,
        subtasks=changed(
            good.subtasks, lambda s: s.key == "a", status="BLOCKED", is_dispensable=True, wants_approval=True
        ),
        attempts=changed(good.attempts, lambda a: a.sub_task_id == "A", status="FAILED"),
        letters=[Letter(id="A", status="open")],
        events=[
            *without(good.events, lambda e: e.subtask == "a"),
            Event(id=5, at=AT, task_id="t", kind="approval", subtask="a", source="READY", target="AWAITING_APPROVAL"),
            Event(id=6, at=AT, task_id="t", kind="approval", subtask="a", source="AWAITING_APPROVAL", target="QUEUED"),
            *moves("a", ("PENDING", "READY", None), ("READY", "AWAITING_APPROVAL", None), begin=11),
            *moves("a", ("AWAITING_APPROVAL", "QUEUED", None), ("QUEUED", "RUNNING", 1), begin=13),
            *moves("a", ("RUNNING", "FAILED", 1), ("FAILED", "BLOCKED", 1), begin=15),
        ],
    )


def rerun() -> History:
    """A task with a callback that failed, was retried, completed, and was forked; a plan that nobody wanted.

    In the first one ``b`` and ``c`` come after ``a``, which was blocked; ``c`` calls something outside. The fork,
    ``f``, ran ``b`` anew.
    """
    begun = [(None, "PENDING", None), ("PENDING", "SPLITTING", None), ("SPLITTING", "READY", None)]
    ran = [("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), ("RUNNING", "COMPLETED", 1)]
    return History(
        accepted=[
            Accepted(task_id="t", title="one", ends=frozenset({"COMPLETED"}), result=1, again=("t",)),
            Accepted(task_id="f", title="one", ends=frozenset({"COMPLETED"}), result=2, fork_of="t", anew=("b",)),
            Accepted(task_id="p", title="two", ends=frozenset({"CANCELLED"}), result=None),
        ],
        tasks=[
            Task(id="t", title="one", status="COMPLETED", result=1, has_callback=True),
            Task(id="f", title="one", status="COMPLETED", result=2, forked_from="t"),
            Task(id="p", title="two", status="CANCELLED", result=None, wants_approval=True),
        ],
        subtasks=[
            Subtask(id="A", task_id="t", key="a", tool=TOOL, status="COMPLETED", attempt=2),
            Subtask(id="B", task_id="t", key="b", tool=TOOL, status="COMPLETED", attempt=1, after=("a",)),
            Subtask(
                id="C", task_id="t", key="c", tool=CALL, status="COMPLETED", attempt=2, after=("a",), retry_count=1
            ),
            Subtask(id="FA", task_id="f", key="a", tool=TOOL, status="COMPLETED", attempt=0),
            Subtask(id="FB", task_id="f", key="b", tool=TOOL, status="COMPLETED", attempt=1, after=("a",)),
            Subtask(id="FC", task_id="f", key="c", tool=CALL, status="COMPLETED", attempt=0, after=("a",)),
            Subtask(id="P", task_id="p", key="a", tool=TOOL, status="CANCELLED", attempt=0),
        ],
        attempts=[
            Attempt(sub_task_id="A", attempt=1, status="FAILED"),
            Attempt(sub_task_id="A", attempt=2, status="COMPLETED"),
            Attempt(sub_task_id="B", attempt=1, status="COMPLETED"),
            Attempt(sub_task_id="C", attempt=1, status="FAILED"),
            Attempt(sub_task_id="C", attempt=2, status="COMPLETED"),
            Attempt(sub_task_id="FB", attempt=1, status="COMPLETED"),
        ],
        events=[
            *moves(None, *begun, ("READY", "PROCESSING", None), ("PROCESSING", "FAILED", None), begin=1),
            *moves("a", ("PENDING", "READY", None), ("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), begin=11),
            *moves("a", ("RUNNING", "FAILED", 1), ("FAILED", "BLOCKED", 1), ("BLOCKED", "QUEUED", 1), begin=14),
            *moves("a", ("QUEUED", "RUNNING", 2), ("RUNNING", "COMPLETED", 2), begin=17),
            *moves("b", ("PENDING", "READY", None), ("READY", "SKIPPED", None), ("SKIPPED", "READY", None), begin=20),
            *moves("b", *ran, begin=23),
            *moves("c", ("PENDING", "READY", None), ("READY", "SKIPPED", None), ("SKIPPED", "READY", None), begin=30),
            *moves("c", ("READY", "QUEUED", None), ("QUEUED", "RUNNING", 1), ("RUNNING", "FAILED", 1), begin=33),
            *moves("c", ("FAILED", "QUEUED", 1), ("QUEUED", "RUNNING", 2), ("RUNNING", "COMPLETED", 2), begin=36),
            *moves(None, ("FAILED", "PROCESSING", None), ("PROCESSING", "COMPLETED", None), begin=40),
            *moves(None, *begun, ("READY", "PROCESSING", None), begin=50, task="f"),
            *moves("a", (None, "COMPLETED", None), begin=54, task="f"),
            *moves("c", (None, "COMPLETED", None), begin=55, task="f"),
            *moves("b", ("PENDING", "READY", None), *ran, begin=56, task="f"),
            *moves(None, ("PROCESSING", "COMPLETED", None), begin=60, task="f"),
            *moves(None, *begun, ("READY", "CANCELLED", None), begin=70, task="p"),
            Event(id=75, at=AT, task_id="p", kind="approval", subtask=None, source="READY", target="CANCELLED"),
            *moves("a", ("PENDING", "CANCELLED", None), begin=76, task="p"),
        ],
        marks=[
            Mark(sub_task_id="A", attempt=1, at=100),
            Mark(sub_task_id="A", attempt=2, at=110),
            Mark(sub_task_id="B", attempt=1, at=120),
            Mark(sub_task_id="FB", attempt=1, at=130),
        ],
        calls=[Call(sub_task_id="C", at=120, status=503), Call(sub_task_id="C", at=121, status=200)],
        letters=[Letter(id="A", status="retried")],
        webhooks=[
            Webhook(id="h1", task_id="t", task_status="FAILED", status="delivered"),
            Webhook(id="h2", task_id="t", task_status="COMPLETED", status="delivered"),
        ],
        heard=[
            Heard(id="h1", task_id="t", task_status="FAILED", body="x"),
            Heard(id="h1", task_id="t", task_status="FAILED", body="x"),
            Heard(id="h2", task_id="t", task_status="COMPLETED", body="y"),
        ],
    )


GOOD = sound()
MISSING = with_a_missing_one()
RERUN = rerun()
