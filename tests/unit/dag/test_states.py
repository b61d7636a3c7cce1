"""Every pair of state and event is a row of the table or is refused: all of them are tried here."""

from __future__ import annotations

from itertools import product

import pytest

from rayloom.dag.errors import Stale
from rayloom.dag.states import (
    SUBTASK_FINAL,
    SUBTASK_MOVES,
    SUBTASK_SETTLED,
    TASK_FINAL,
    TASK_MOVES,
    TASK_TERMINAL,
    SubtaskEvent,
    SubtaskStatus,
    TaskEvent,
    TaskStatus,
    legal_pairs,
    move_subtask,
    move_task,
)


@pytest.mark.parametrize(("status", "event"), list(product(TaskStatus, TaskEvent)))
def test_every_event_moves_a_task_as_the_table_says_or_not_at_all(status: TaskStatus, event: TaskEvent) -> None:
    if (status, event) in TASK_MOVES:
        assert move_task(status, event) is TASK_MOVES[status, event]
    else:
        with pytest.raises(Stale, match=f"a task that is {status} can't take the event {event}") as refused:
            move_task(status, event)
        assert refused.value.code == "ILLEGAL_TRANSITION"


@pytest.mark.parametrize(("status", "event"), list(product(SubtaskStatus, SubtaskEvent)))
def test_every_event_moves_a_subtask_as_the_table_says_or_not_at_all(
    status: SubtaskStatus, event: SubtaskEvent
) -> None:
    if (status, event) in SUBTASK_MOVES:
        assert move_subtask(status, event) is SUBTASK_MOVES[status, event]
    else:
        with pytest.raises(Stale, match=f"a subtask that is {status} can't take the event {event}") as refused:
            move_subtask(status, event)
        assert refused.value.code == "ILLEGAL_TRANSITION"


def test_nothing_leaves_a_final_state() -> None:
    assert not [status for status, _ in TASK_MOVES if status in TASK_FINAL]
    assert not [status for status, _ in SUBTASK_MOVES if status in SUBTASK_FINAL]


def test_what_is_not_final_can_be_left() -> None:
    assert {status for status, _ in TASK_MOVES} == set(TaskStatus) - TASK_FINAL
    assert {status for status, _ in SUBTASK_MOVES} == set(SubtaskStatus) - SUBTASK_FINAL


def test_every_state_is_reached() -> None:
    # A task is PENDING again where it has failed without a plan.
    assert set(TASK_MOVES.values()) == set(TaskStatus)
    assert set(SUBTASK_MOVES.values()) == set(SubtaskStatus) - {SubtaskStatus.PENDING}


def test_final_states_are_among_those_that_end() -> None:
    assert TASK_FINAL < TASK_TERMINAL
    assert SUBTASK_FINAL < SUBTASK_SETTLED


def test_the_ways_of_the_contract_exist() -> None:
    pairs = legal_pairs(SUBTASK_MOVES)
    chain = "PENDING>READY READY>QUEUED QUEUED>RUNNING RUNNING>COMPLETED RUNNING>FAILED FAILED>QUEUED FAILED>BLOCKED"
    repair = "READY>AWAITING_APPROVAL AWAITING_APPROVAL>QUEUED AWAITING_APPROVAL>BLOCKED BLOCKED>QUEUED SKIPPED>READY"
    assert {*chain.split(), *repair.split(), "READY>SKIPPED"} <= set(pairs)
    assert pairs == sorted(set(pairs))
    tasks = set(legal_pairs(TASK_MOVES))
    assert {
        "PENDING>SPLITTING",
        "SPLITTING>READY",
        "READY>PROCESSING",
        "PROCESSING>COMPLETED",
        "FAILED>PROCESSING",
    } <= tasks
    assert not {pair for pair in tasks if pair.startswith(("COMPLETED>", "CANCELLED>"))}
