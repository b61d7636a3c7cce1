"""The checker on times: what goes on after it was cancelled, and what runs at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.chaos.checker import check
from tests.chaos.plans import CALL, TOOL
from tests.chaos.record import (
    Attempt,
    Call,
    Circumstances,
    Event,
    History,
    Life,
    Mark,
    Subtask,
    Task,
    Upset,
)
from tests.chaos.rules.ledger import STOPPED_S
from tests.chaos.rules.limits import FORGETFUL_S


def event(
    id_: int, at: float, subtask: str | None, source: str | None, target: str, attempt: int | None = None
) -> Event:
    """A transition of the task ``t``, or of a subtask of it, at so many seconds since the epoch."""
    kind = "task" if subtask is None else "subtask"
    moment = datetime.fromtimestamp(at, UTC)
    return Event(
        id=id_, at=moment, task_id="t", kind=kind, subtask=subtask, source=source, target=target, attempt=attempt
    )


def rules_of(history: History) -> set[str]:
    """The rules that are broken in it."""
    return {violation.rule for violation in check(history)}


CANCELLED = History(
    accepted=[],
    tasks=[Task(id="t", title="one", status="CANCELLED", result=None)],
    subtasks=[
        Subtask(id="A", task_id="t", key="a", tool=TOOL, status="CANCELLED", attempt=1),
        Subtask(id="B", task_id="t", key="b", tool=CALL, status="CANCELLED", attempt=1),
    ],
    attempts=[],
    events=[
        event(1, 100, None, None, "PENDING"),
        event(2, 100, None, "PENDING", "CANCELLED"),
        *(
            event(id_ + step, 100, key, source, target, 1)
            for id_, key in ((10, "a"), (20, "b"))
            for step, (source, target) in enumerate(
                [("PENDING", "READY"), ("READY", "QUEUED"), ("QUEUED", "RUNNING"), ("RUNNING", "CANCELLED")]
            )
        ),
    ],
    marks=[],
)
"""A task that was cancelled at 100, while both its subtasks ran."""


@pytest.mark.parametrize(
    "seen", [{"marks": [Mark(sub_task_id="A", attempt=1, at=100 + STOPPED_S + 1)]},
             {"calls": [Call(sub_task_id="B", at=100 + STOPPED_S + 1, status=200)]}],
)  # fmt: skip
def test_what_is_seen_of_a_cancelled_task_long_after_is_found(seen: dict[str, object]) -> None:
    assert "ran on" in rules_of(replace(CANCELLED, **seen))  # type: ignore[arg-type]  # fields of it


def test_what_was_cancelled_may_have_begun_a_moment_after() -> None:
    seen = replace(CANCELLED, calls=[Call(sub_task_id="B", at=106, status=200)])
    assert rules_of(seen) == set()


def test_a_subtask_that_was_cancelled_and_a_task_that_was_not_is_told_by_its_own_event() -> None:
    failed = replace(
        CANCELLED,
        tasks=[replace(CANCELLED.tasks[0], status="FAILED")],
        events=[replace(each, target="FAILED") if each.id == 2 else each for each in CANCELLED.events],
        calls=[Call(sub_task_id="B", at=100 + STOPPED_S + 1, status=200)],
    )
    assert rules_of(failed) == {"ran on"}


def ran(first_id: int, key: str, begun_at: float, ended_at: float, end: str = "COMPLETED") -> list[Event]:
    """The events of a subtask whose only attempt was under way from then to then."""
    return [
        event(first_id, 1, key, "PENDING", "READY"),
        event(first_id + 1, 1, key, "READY", "QUEUED"),
        event(first_id + 2, begun_at, key, "QUEUED", "RUNNING", 1),
        event(first_id + 3, ended_at, key, "RUNNING", end, 1),
    ]


def at_once(*runs: tuple[float, float], limit: int) -> History:
    """A task of a user with a limit, whose subtasks ran from then to then each."""
    keys = [f"n{number}" for number in range(len(runs))]
    return History(
        accepted=[],
        tasks=[Task(id="t", title="one", status="COMPLETED", result=1, user="u")],
        subtasks=[
            Subtask(id=key, task_id="t", key=key, tool="core.echo", status="COMPLETED", attempt=1) for key in keys
        ],
        attempts=[Attempt(sub_task_id=key, attempt=1, status="COMPLETED") for key in keys],
        events=[
            event(1, 1, None, None, "PENDING"),
            event(2, 1, None, "PENDING", "SPLITTING"),
            event(3, 1, None, "SPLITTING", "READY"),
            event(4, 1, None, "READY", "PROCESSING"),
            *(
                each
                for n, (key, run) in enumerate(zip(keys, runs, strict=True))
                for each in ran(10 * n + 10, key, *run)
            ),
            event(1_000, 500, None, "PROCESSING", "COMPLETED"),
        ],
        marks=[],
        limits={"u": limit},
    )


def test_as_many_at_once_as_the_limit_says_are_sound() -> None:
    assert rules_of(at_once((10, 20), (11, 14), (14, 18), (20, 21), limit=2)) == set()


def test_more_at_once_than_the_limit_are_found() -> None:
    assert rules_of(at_once((10, 20), (11, 14), (13, 18), limit=2)) == {"over the limit"}


def test_what_another_user_runs_does_not_count() -> None:
    history = at_once((10, 20), (11, 14), (13, 18), limit=2)
    assert rules_of(replace(history, limits={"v": 2})) == set()


def test_an_attempt_whose_beginning_was_told_at_its_end_counts_from_when_its_worker_began_it() -> None:
    history = at_once((20, 20), (10, 19), limit=1)
    assert rules_of(history) == set()
    told = [replace(each, started_at=15.0) if each.sub_task_id == "n0" else each for each in history.attempts]
    assert rules_of(replace(history, attempts=told)) == {"over the limit"}


def test_a_token_controller_that_was_hit_may_have_forgotten_as_many_as_the_limit_and_no_more() -> None:
    hit = Circumstances(upsets=[Upset(began_at=10, ended_at=11)])
    twice = at_once((12, 60), (13, 60), limit=1)
    assert rules_of(twice) == {"over the limit"}
    assert rules_of(replace(twice, circumstances=hit)) == set()
    assert rules_of(replace(at_once((12, 60), (13, 60), (14, 60), limit=1), circumstances=hit)) == {"over the limit"}
    late = at_once((12, 60), (11 + FORGETFUL_S + 1, 60), limit=1)
    assert rules_of(replace(late, circumstances=hit)) == {"over the limit"}


def test_what_was_lost_with_its_scheduler_counts_until_that_life_was_over() -> None:
    history = at_once((10, 30), (21, 24), limit=1)
    lost = replace(
        history,
        attempts=[
            Attempt(sub_task_id="n0", attempt=1, status="LOST", code="SCHEDULER_LOST"),
            Attempt(sub_task_id="n0", attempt=2, status="COMPLETED"),
            history.attempts[1],
        ],
        subtasks=[replace(history.subtasks[0], attempt=2), history.subtasks[1]],
        events=[
            *(each for each in history.events if each.id not in (13, 1_000)),
            event(13, 30, "n0", "RUNNING", "FAILED", 1),
            event(14, 30, "n0", "FAILED", "QUEUED", 1),
            event(15, 40, "n0", "QUEUED", "RUNNING", 2),
            event(16, 41, "n0", "RUNNING", "COMPLETED", 2),
            event(1_000, 500, None, "PROCESSING", "COMPLETED"),
        ],
    )
    assert rules_of(replace(lost, lives=[Life(started_at=1, heard_at=19, ended_at=20)])) == set()
    assert rules_of(replace(lost, lives=[Life(started_at=1, heard_at=22, ended_at=23)])) == {"over the limit"}
