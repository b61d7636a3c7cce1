"""The checker on retries: how many there may be, and how long each must wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayloom.dag.breaker import BREAKER_OPEN
from tests.chaos.record import Attempt, BackOff, Circumstances, Event, History, Subtask, Task
from tests.unit.chaos.histories import changed
from tests.unit.chaos.test_times import event, rules_of

KNOWN = Circumstances(back_off=BackOff(initial_s=0.2, max_s=2))
FAILURES = 4


def tried(
    waits_s: tuple[float, ...] = (0.4, 0.8, 1.6, 2.0), *, codes: tuple[str, ...] = (), status: str = "FAILED"
) -> History:
    """A subtask that fails at 100 at once, again so long after each, and completes at last."""
    events, attempts, now = [event(10, 90, "a", "PENDING", "READY"), event(11, 90, "a", "READY", "QUEUED")], [], 100.0
    for number, wait_s in enumerate(waits_s, start=1):
        code = codes[number - 1] if codes else "X"
        attempts.append(
            Attempt(sub_task_id="A", attempt=number, status=status, code=code, started_at=now, ended_at=now)
        )
        first = 10 * number + 10
        events += [
            event(first, now, "a", "QUEUED", "RUNNING", number),
            event(first + 1, now + 0.1, "a", "RUNNING", "FAILED", number),
            event(first + 2, now + wait_s, "a", "FAILED", "QUEUED", number),
        ]
        now += wait_s
    last = len(waits_s) + 1
    events += [event(500, now, "a", "QUEUED", "RUNNING", last), event(501, now, "a", "RUNNING", "COMPLETED", last)]
    return History(
        accepted=[],
        tasks=[Task(id="t", title="one", status="COMPLETED", result=1)],
        subtasks=[
            Subtask(
                id="A", task_id="t", key="a", tool="core.echo", status="COMPLETED", attempt=last, max_retries=FAILURES,
                retry_count=len(waits_s),
            )
        ],
        attempts=[*attempts, Attempt(sub_task_id="A", attempt=last, status="COMPLETED")],
        events=[
            event(1, 80, None, None, "PENDING"),
            event(2, 80, None, "PENDING", "SPLITTING"),
            event(3, 80, None, "SPLITTING", "READY"),
            event(4, 80, None, "READY", "PROCESSING"),
            *events,
            event(600, 900, None, "PROCESSING", "COMPLETED"),
        ],
        marks=[],
        circumstances=KNOWN,
    )  # fmt: skip


def having(history: History, **fields: object) -> History:
    """The same with another row of the subtask."""
    return replace(history, subtasks=changed(history.subtasks, lambda s: True, **fields))


def test_as_many_retries_as_it_has_each_after_its_wait_are_sound() -> None:
    assert rules_of(tried()) == set()


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT"])
def test_more_attempts_than_it_has_are_found(status: str) -> None:
    assert "retries" in rules_of(having(tried(status=status), max_retries=2, retry_count=2))


@pytest.mark.parametrize("count", [FAILURES - 1, FAILURES + 1])
def test_a_count_that_the_record_does_not_bear_out_is_found(count: int) -> None:
    assert rules_of(having(tried(), retry_count=count)) == {"retries"}


@pytest.mark.parametrize("place", range(FAILURES))
def test_a_retry_before_its_time_is_found(place: int) -> None:
    waits_s = [0.4, 0.8, 1.6, 2.0]
    waits_s[place] -= 0.05
    assert rules_of(tried(tuple(waits_s))) == {"back-off"}


def test_what_was_lost_spends_nothing_and_waits_a_little() -> None:
    lost = having(tried((0.2, 0.2), status="LOST", codes=("NODE_LOST",) * 2), retry_count=0)
    assert rules_of(lost) == set()
    assert rules_of(having(lost, retry_count=1)) == {"retries"}
    soon = having(tried((0.1,), status="LOST", codes=("NODE_LOST",)), retry_count=0)
    assert rules_of(soon) == {"back-off"}


def test_what_was_lost_with_its_scheduler_waits_for_nothing() -> None:
    lost = having(tried((0.11,), status="LOST", codes=("SCHEDULER_LOST",)), retry_count=0)
    assert rules_of(lost) == set()


def test_an_attempt_that_is_not_made_as_a_breaker_is_open_spends_nothing() -> None:
    assert rules_of(having(tried((0.2, 0.2), codes=(BREAKER_OPEN,) * 2), retry_count=0)) == set()


def test_a_probe_of_a_breaker_spends_nothing_and_waits_as_long() -> None:
    probing = replace(KNOWN, breakers=frozenset({"core.echo"}))
    probed = replace(having(tried((0.4, 0.4, 0.8)), retry_count=2), circumstances=probing)
    assert rules_of(probed) == set()
    assert rules_of(replace(probed, circumstances=KNOWN)) == {"retries", "back-off"}
    hasty = replace(having(tried((0.4, 0.4, 0.7)), retry_count=2), circumstances=probing)
    assert rules_of(hasty) == {"back-off"}
    spending = replace(having(tried((0.4, 0.4, 0.8)), retry_count=3), circumstances=probing)
    assert rules_of(spending) == {"back-off"}


def test_it_has_as_many_again_once_it_was_retried_by_hand() -> None:
    history = having(tried(), retry_count=2)
    by_hand: list[Event] = []
    for each in history.events:
        if each.id == 32:
            by_hand += [event(32, 101, "a", "FAILED", "BLOCKED", 2), event(33, 101, "a", "BLOCKED", "QUEUED", 2)]
        else:
            by_hand.append(each)
    assert "retries" not in rules_of(having(replace(history, events=by_hand), max_retries=2))
    assert "retries" in rules_of(having(history, max_retries=2))
