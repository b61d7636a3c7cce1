"""What limits hold back is let out a few at a time, best first, and none of it is forgotten."""

from __future__ import annotations

import time

import pytest

from rayloom.actors.parked import FEW, NEXT_S, Parked
from rayloom.dag.token_port import Held
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


def _held(seconds: float, limit: str = "max_concurrent", *, alone: bool = False) -> Held:
    return Held(sub_task_id="", limit=limit, ask_again_in_s=seconds, free_in_s=seconds + 50, alone=alone)


def test_the_best_few_of_each_user_come_out_when_their_time_has_come(clock: Clock) -> None:
    parked = Parked()
    for number in reversed(range(2 * FEW)):
        parked.add(_item(number), _held(2.0))
    parked.add(_item(1, "bob"), _held(3.0))
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
        parked.add(_item(number), _held(seconds))
    assert parked.next_at() == 102.0
    clock.now_s += 2
    parked.let_out()
    # A user who has been asked for anew waits as long as is said now.
    parked.add(_item(3), _held(8.0))
    assert parked.next_at() == 110.0


def test_who_comes_while_its_user_is_held_back_joins_until_some_are_let_out(clock: Clock) -> None:
    parked = Parked()
    assert not parked.joins(_item(0))
    for number in range(FEW):
        parked.add(_item(number), _held(2.0))
    assert parked.joins(_item(99))
    assert parked.joins(_item(99)), "told again by a sweep"
    assert (len(parked), parked.joins(_item(0, "bob"))) == (FEW + 1, False)
    clock.now_s += 2
    parked.let_out()
    assert not parked.joins(_item(98))
    assert parked.next_at() == clock.now_s + NEXT_S


def test_a_user_who_may_have_room_is_not_kept_waiting(clock: Clock) -> None:
    parked = Parked()
    parked.add(_item(0), _held(10.0))
    parked.hasten("bob")
    assert parked.let_out() == []
    parked.hasten("ann")
    assert parked.let_out() == [_item(0)]


def test_what_is_held_alone_holds_back_nothing_else_of_its_user(clock: Clock) -> None:
    parked = Parked()
    parked.add(_item(0), _held(9.0, "key.max_tokens", alone=True))
    parked.add(_item(1), _held(4.0, "tokens_per_min", alone=True))
    assert not parked.joins(_item(2))
    assert parked.closed() == []
    assert parked.limit_of("ann000", "ann") == ("key.max_tokens", 59.0)
    assert (parked.limit_of("ann002", "ann"), parked.limit_of("bob", "bob")) == (None, None)
    clock.now_s += 4
    assert parked.limit_of("ann001", "ann") == ("tokens_per_min", 50.0)
    assert parked.let_out() == [_item(1)]
    # What holds all of a user holds this one, too.
    parked.add(_item(3), _held(1.0))
    assert parked.limit_of("ann000", "ann") == ("max_concurrent", 51.0)
    parked.hasten("ann")
    assert parked.let_out() == [_item(0), _item(3)]
    assert (len(parked), parked.next_at()) == (0, None)


def test_who_is_held_alone_and_was_let_out_in_vain_goes_behind_those_who_were_not(clock: Clock) -> None:
    """Else whoever is behind a few that one key's limit holds would never be asked for, whatever its own key allows."""
    parked = Parked()
    for number in range(FEW + 5):
        parked.add(_item(number), _held(2.0, "key.max_tokens", alone=True))
    asked = []
    for _ in range(3):
        clock.now_s += 2
        out = parked.let_out()
        asked.append([int(item.score) for item in out])
        for item in out:
            parked.add(item, _held(2.0, "key.max_tokens", alone=True))
    last = list(range(FEW, FEW + 5))
    assert asked == [list(range(FEW)), last + list(range(FEW - 5)), list(range(FEW - 5, FEW)) + list(range(11))]


def test_the_best_of_who_is_held_with_all_of_its_user_stay_first(clock: Clock) -> None:
    parked = Parked()
    for number in range(FEW + 5):
        parked.add(_item(number), _held(2.0))
    for _ in range(2):
        clock.now_s += 2
        out = parked.let_out()
        assert out == [_item(number) for number in range(FEW)]
        for item in out:
            parked.add(item, _held(2.0))
