"""The driver of a chaos run waits for an API that is away until the run is over, and no longer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayloom.serve.answers import Unreachable
from tests.chaos.driver import PATIENCE_S, Driver
from tests.chaos.killer import Blow, Killer
from tests.chaos.record import Upset

SPAN_S = 300.0
RIG: Any = SimpleNamespace(instance=SimpleNamespace(url="http://127.0.0.1:1", key="k"), has_nodes=True)


def driver() -> Driver:
    """One of a run that has just begun."""
    receiver: Any = SimpleNamespace(url="http://127.0.0.1:1")
    made = Driver(RIG, receiver, seed=1, subtasks=10, span_s=SPAN_S)
    made.begin()
    return made


def test_whoever_submits_is_patient_to_the_end_of_the_run_and_some_minutes_more() -> None:
    assert SPAN_S + PATIENCE_S - 60 < driver()._patience_s() <= SPAN_S + PATIENCE_S


def test_nobody_tries_on_when_the_run_is_over() -> None:
    over = driver()
    over._over.set()
    with pytest.raises(Unreachable):
        over._pause_patiently(3_600)
    with pytest.raises(Unreachable):
        over.submit_at_once(10)


def test_the_token_controller_is_upset_by_what_was_done_to_it_or_to_its_node() -> None:
    killer = Killer(RIG, 1, tell=print)
    killer.blows += [
        Blow(at_s=1, at=101, what="SIGSTOP", victim="tokens", lasted_s=0.5),
        Blow(at_s=2, at=102, what="SIGKILL", victim="redis"),
        Blow(at_s=3, at=103, what="SIGKILL", victim="node"),
        Blow(at_s=4, at=104, what="SIGKILL", victim="gcs"),
    ]
    expected = [
        Upset(began_at=100.5, ended_at=101),
        Upset(began_at=103, ended_at=103),
        Upset(began_at=104, ended_at=104),
    ]
    assert killer.upsets == expected
