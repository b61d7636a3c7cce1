"""What limits hold back is let out a few at a time, best first, and none of it is forgotten."""

from __future__ import annotations

import time

import pytest

from rayloom.actors.parked import FEW, NEXT_S, Parked
from rayloom.db.queue import Queued


class Clock:
    """Stands until it is moved."""

    now_s = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now_s)
    return clock


def _item(number: int, user_id: str = "ann") -> Queued:
    return Queued(f"{user_id}{number:03}", user_id, "shape", float(number))


def test_the_best_few_of_each_user_come_out_when_their_time_has_come(clock: Clock) -> None:
    parked = Parked()
    for number in reversed(range(2 * FEW)):
        parked.add(_item(number), 2.0, limit="max_concurrent")
    parked.add(_item(1, "bob"), 3.0, limit="max_concurrent")
    assert (parked.let_out(), parked.next_at(), len(parked)) == ([], 102.0, 2 * FEW + 1)
    clock.now_s += 2
    assert parked.let_out() == [_item(number) for number in range(FEW)]
    assert ("ann000" in parked, "ann031" in parked) == (False, True)
    clock.now_s += 1
    assert parked.let_out() == [_item(number) for number in range(FEW, 2 * FEW)] + [_item(1, "bob")]
    assert (parked.let_out(), parked.next_at(), len(parked)) == ([], None, 0)


def test_of_several_that_are_told_to_wait_the_first_counts(clock: Clock) -> None:
    parked = Parked()
    for number, seconds in enumerate((5.0, 2.0, 9.0)):
        parked.add(_item(number), seconds, limit="max_concurrent")
    assert parked.next_at() == 102.0
    clock.now_s += 2
    parked.let_out()
    # A user who has been asked for anew waits as long as is said now.
    parked.add(_item(3), 8.0, limit="max_concurrent")
    assert parked.next_at() == 110.0


def test_who_comes_while_its_user_is_held_back_joins_until_some_are_let_out(clock: Clock) -> None:
    parked = Parked()
    assert not parked.joins(_item(0))
    for number in range(FEW):
        parked.add(_item(number), 2.0, limit="max_concurrent")
    assert parked.joins(_item(99))
    assert parked.joins(_item(99)), "told again by a sweep"
    assert (len(parked), parked.joins(_item(0, "bob"))) == (FEW + 1, False)
    clock.now_s += 2
    parked.let_out()
    assert not parked.joins(_item(98))
    assert parked.next_at() == clock.now_s + NEXT_S


def test_a_user_who_may_have_room_is_not_kept_waiting(clock: Clock) -> None:
    parked = Parked()
    parked.add(_item(0), 10.0, limit="max_concurrent")
    parked.hasten("bob")
    assert parked.let_out() == []
    parked.hasten("ann")
    assert parked.let_out() == [_item(0)]
