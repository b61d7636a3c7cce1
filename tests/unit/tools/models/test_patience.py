"""How long a call waits for room in its place."""

from __future__ import annotations

from rayloom.tools.models.patience import AGAIN_MAX_S, AGAIN_MIN_S, Patience, Waiting


def test_a_short_wait_is_waited_and_a_long_one_not() -> None:
    waiting = Waiting(Patience())
    assert waiting.pause_s(0.0, has_paid=False) == AGAIN_MIN_S
    assert waiting.pause_s(4.0, has_paid=False) == 4.0
    assert waiting.pause_s(5.1, has_paid=False) is None
    assert waiting.pause_s(5.0, has_paid=False) == 5.0
    assert waiting.pause_s(5.0, has_paid=False) == 5.0
    # That was all.
    assert waiting.pause_s(1.0, has_paid=False) is None


def test_what_is_paid_for_is_worth_a_longer_wait() -> None:
    waiting = Waiting(Patience(paid_s=20.0))
    assert [waiting.pause_s(wait_s, has_paid=True) for wait_s in (20.0, 15.0, 10.1)] == [AGAIN_MAX_S, AGAIN_MAX_S, None]
    assert waiting.pause_s(60.0, has_paid=True, may_end_it=True) == AGAIN_MAX_S
    assert Waiting(Patience(paid_s=2.0)).pause_s(3.0, has_paid=True) is None


def test_no_more_than_half_of_the_time_that_is_left_is_waited() -> None:
    left_s = 40.0
    waiting = Waiting(Patience(left_s=lambda: left_s))
    assert waiting.asking_s == 20.0
    assert waiting.pause_s(20.1, has_paid=True) is None
    assert waiting.pause_s(20.0, has_paid=True) == AGAIN_MAX_S
    # Whatever else the time went by with.
    left_s = 24.0
    assert waiting.pause_s(4.1, has_paid=True) is None
    left_s = 10.0
    assert waiting.pause_s(0.0, has_paid=False) is None
    # To hear whether there is room now it may take a moment all the same.
    assert waiting.asking_s == 10.0
    left_s = 20.1
    assert waiting.asking_s == 10.0
    assert Waiting(Patience()).asking_s is None


def test_for_what_it_may_end_itself_it_waits_as_long_as_there_is_time() -> None:
    left_s = 300.0
    waiting = Waiting(Patience(left_s=lambda: left_s))
    for time_s in (300.0, 150.0, 149.0, AGAIN_MAX_S):
        left_s = time_s
        assert waiting.pause_s(60.0, has_paid=True, may_end_it=True) == AGAIN_MAX_S
    left_s = 4.0
    assert waiting.pause_s(4.0, has_paid=True, may_end_it=True) == 4.0
    assert waiting.pause_s(60.0, has_paid=True, may_end_it=True) is None
    # Nor was any of it waited for others.
    left_s = 300.0
    assert waiting.pause_s(75.0, has_paid=True) == AGAIN_MAX_S
