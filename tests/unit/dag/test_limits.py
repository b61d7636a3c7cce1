"""Limits: no window of a minute ever holds more than its limit, and whoever is told to wait gets in when it is over."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag.amount import Amount
from rayloom.dag.limits import (
    ASK_AGAIN_BUSY_S,
    ASK_AGAIN_MAX_S,
    ASK_AGAIN_MIN_S,
    ASK_AGAIN_SPENT_S,
    WINDOW_S,
    Usage,
    Wait,
    Window,
    is_limited,
    limited,
    may_start,
)
from rayloom.dag.ports import Limited, Quota

# Sums of these are exact, so that what lies a minute apart does so in floats, too.
GAPS = st.lists(st.integers(0, 90 * 1024).map(lambda n: n / 1024), min_size=1, max_size=60)


def _times(gaps: list[float], start_s: float) -> list[float]:
    times = [start_s]
    for gap in gaps:
        times.append(times[-1] + gap)
    return times


@given(gaps=GAPS, burst=st.integers(1, 5), limit=st.integers(0, 12), start_s=st.integers(-(10**6), 10**9))
def test_no_minute_ever_holds_more_starts_than_the_limit(
    gaps: list[float], burst: int, limit: int, start_s: int
) -> None:
    quota, usage, admitted = Quota(requests_per_min=limit), Usage(), []
    for now_s in _times(gaps, start_s):
        for _ in range(burst):
            if may_start(quota, usage, ahead=0, now_s=now_s) is None:
                usage = usage.started(now_s=now_s)
                admitted.append(now_s)
    for since_s in admitted:
        assert sum(since_s <= at_s <= since_s + WINDOW_S for at_s in admitted) <= limit


@given(
    gaps=GAPS,
    amounts=st.lists(st.integers(1, 50), min_size=61, max_size=61),
    wanted=st.integers(1, 60),
    limit=st.integers(1, 100),
)
def test_room_comes_exactly_when_it_was_said_to_come(
    gaps: list[float], amounts: list[int], wanted: int, limit: int
) -> None:
    window, now_s = Window(), 0.0
    for now_s, amount in zip(_times(gaps, 1000.0), amounts, strict=False):
        window = window.add(amount, now_s=now_s)
    wait_s = window.room_in_s(wanted, limit, now_s=now_s)
    if wanted > limit:
        assert math.isinf(wait_s)
        return
    assert 0 <= wait_s <= WINDOW_S + 1
    assert window.total(now_s=now_s + wait_s + 1e-6) + wanted <= limit
    if wait_s > 0:
        assert window.total(now_s=now_s + wait_s - 1e-3) + wanted > limit


@given(gaps=GAPS)
def test_a_window_read_from_a_record_counts_as_the_one_that_was_lived_through(gaps: list[float]) -> None:
    times = _times(gaps, 500.0)
    lived = Window()
    for at_s in times:
        lived = lived.add(2, now_s=at_s)
    read = Window.of([(at_s, 2) for at_s in reversed(times)], now_s=times[-1])
    assert read == lived


@given(gaps=GAPS)
def test_a_window_stays_small(gaps: list[float]) -> None:
    window = Window()
    for now_s in _times(gaps, 0.0):
        for fraction in (0.0, 0.2, 0.4):
            window = window.add(1, now_s=now_s + fraction)
    assert len(window.seconds) <= WINDOW_S + 2


def test_a_clock_that_stands_or_slips_back_loses_nothing() -> None:
    window = Window().add(1, now_s=100.9).add(1, now_s=100.1).add(1, now_s=99.0)
    assert window.total(now_s=100.9) == 3


def test_what_did_not_start_is_no_request() -> None:
    usage = Usage().started(now_s=10.2).started(now_s=10.9).started(now_s=12.0)
    back = usage.returned(started_s=10.9)
    assert (back.concurrent, back.requests.seconds) == (2, ((10, 1), (12, 1)))
    assert back.returned(started_s=10.2).requests.seconds == ((12, 1),)
    # What does not count any more is not taken from others.
    late = usage.started(now_s=100.0).returned(started_s=10.2)
    assert late.requests.seconds == ((100, 1),)


@given(gaps=GAPS, limit=st.integers(1, 5), given_back=st.sets(st.integers(0, 200)))
def test_what_is_given_back_lets_no_minute_hold_more_real_starts_than_the_limit(
    gaps: list[float], limit: int, given_back: set[int]
) -> None:
    quota, usage, real, taken = Quota(requests_per_min=limit), Usage(), [], 0
    for now_s in _times(gaps, 0.0):
        for _ in range(3):
            if may_start(quota, usage, ahead=0, now_s=now_s) is not None:
                break
            usage, taken = usage.started(now_s=now_s), taken + 1
            if taken in given_back:
                usage = usage.returned(started_s=now_s)
            else:
                real.append(now_s)
    for since_s in real:
        assert sum(since_s <= at_s <= since_s + WINDOW_S for at_s in real) <= limit


def test_nothing_is_added_by_nothing() -> None:
    assert Window().add(0, now_s=1.0) == Window()
    assert Usage(concurrent=1).freed().spent(Amount.of(-5, 0.0), now_s=1.0) == Usage()


@pytest.mark.parametrize(
    ("quota", "limits"),
    [
        (Quota(), False),
        (Quota(max_cost_usd=1.0), True),
        (Quota(max_tokens=0), True),
        (Quota(tokens_per_min=0), True),
        (Quota(requests_per_min=0), True),
        (Quota(max_concurrent=0), True),
    ],
)
def test_which_quotas_limit_a_start(quota: Quota, limits: bool) -> None:
    assert is_limited(quota) is limits


def test_concurrency_is_held_and_freed() -> None:
    quota = Quota(max_concurrent=2)
    usage = Usage().started(now_s=0).started(now_s=0)
    assert may_start(quota, usage, ahead=0, now_s=0) == Wait(limit="max_concurrent", ask_again_in_s=ASK_AGAIN_MIN_S)
    assert may_start(quota, usage.freed().spent(Amount.of(0, 0.0), now_s=0), ahead=0, now_s=0) is None


def test_those_further_back_are_asked_later_but_within_a_second() -> None:
    quota, usage = Quota(max_concurrent=2), Usage(concurrent=2)
    waits = [may_start(quota, usage, ahead=ahead, now_s=0) for ahead in range(12)]
    times = [wait.ask_again_in_s for wait in waits if wait is not None]
    assert len(times) == 12
    assert times == sorted(times)
    assert times[0] < times[-1] == ASK_AGAIN_BUSY_S


def test_total_tokens_close_when_reached() -> None:
    quota = Quota(max_tokens=100)
    usage = Usage().started(now_s=0).freed().spent(Amount.of(99, 0.0), now_s=0)
    assert may_start(quota, usage, ahead=0, now_s=0) is None
    spent = usage.started(now_s=0).freed().spent(Amount.of(1, 0.0), now_s=0)
    # However long one waits: only a raised limit helps.
    for now_s in (0.0, 1e6):
        assert may_start(quota, spent, ahead=0, now_s=now_s) == Wait(
            limit="max_tokens", ask_again_in_s=ASK_AGAIN_SPENT_S
        )


def test_money_closes_when_it_is_spent() -> None:
    usage = Usage().spent(Amount.of(0, 0.7), now_s=0).spent(Amount.of(0, 0.2), now_s=0)
    assert limited(Quota(max_cost_usd=0.91), usage, now_s=0) is None
    assert limited(Quota(max_cost_usd=0.9), usage, now_s=0) == Limited(limit="max_cost_usd", free_in_s=None)
    held = may_start(Quota(max_cost_usd=0.9), usage, ahead=0, now_s=0)
    assert held == Wait(limit="max_cost_usd", ask_again_in_s=ASK_AGAIN_SPENT_S)


def test_tokens_of_the_last_minute_close_and_open_again() -> None:
    quota = Quota(tokens_per_min=10)
    usage = Usage().freed().spent(Amount.of(25, 0.0), now_s=100.5)
    held = may_start(quota, usage, ahead=0, now_s=101)
    assert held is not None
    assert held.limit == "tokens_per_min"
    assert held.ask_again_in_s == ASK_AGAIN_MAX_S
    nearly = may_start(quota, usage, ahead=0, now_s=157)
    assert nearly is not None
    assert nearly.ask_again_in_s == pytest.approx(4)
    assert may_start(quota, usage, ahead=0, now_s=161) is None


def test_a_limit_of_nothing_lets_nothing_through_and_says_to_ask_for_a_change() -> None:
    for quota in (Quota(requests_per_min=0), Quota(max_concurrent=0), Quota(tokens_per_min=0), Quota(max_tokens=0)):
        held = may_start(quota, Usage(), ahead=0, now_s=0)
        assert held is not None
        assert held.ask_again_in_s == ASK_AGAIN_SPENT_S


def test_what_holds_everything_back_and_for_how_long() -> None:
    busy = Usage(concurrent=1).started(now_s=0.0).freed().spent(Amount.of(9, 0.0), now_s=0.0)
    for quota, held in (
        (Quota(), None),
        (Quota(max_tokens=10, max_concurrent=2, requests_per_min=2, tokens_per_min=10), None),
        (Quota(max_tokens=9), Limited(limit="max_tokens", free_in_s=None)),
        (Quota(max_concurrent=1), Limited(limit="max_concurrent", free_in_s=0.0)),
        (Quota(max_concurrent=0), Limited(limit="max_concurrent", free_in_s=None)),
        (Quota(requests_per_min=1), Limited(limit="requests_per_min", free_in_s=51.0)),
        (Quota(tokens_per_min=9), Limited(limit="tokens_per_min", free_in_s=51.0)),
        (Quota(tokens_per_min=0), Limited(limit="tokens_per_min", free_in_s=None)),
    ):
        assert limited(quota, busy, now_s=10.0) == held


def test_each_that_waits_for_the_minute_is_told_its_own_turn() -> None:
    usage = Usage()
    for at_s in (0.0, 2.0, 4.0):
        usage = usage.started(now_s=at_s)
    quota = Quota(requests_per_min=3)
    waits = [may_start(quota, usage, ahead=ahead, now_s=58) for ahead in range(4)]
    # Room comes at 61, 63 and 65; who comes after those has to ask with the last.
    assert [wait.ask_again_in_s for wait in waits if wait is not None] == pytest.approx([3, 5, 7, 7])
