"""Reservations: what may be used at most must fit under a limit with all that is used and reserved already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag.amount import NOTHING, Amount, nano
from rayloom.dag.limits import WINDOW_S, Usage
from rayloom.dag.model import ProviderLimits
from rayloom.dag.reservations import PROVIDER, RESERVED_WAIT_S, Provider, fits_ahead, refusal, shares, withheld
from rayloom.dag.token_port import Quota

USD = Amount.of(0, 1.0)


def _tokens(tokens: int) -> Amount:
    return Amount(tokens=tokens)


@given(costs=st.lists(st.floats(0, 100), max_size=50))
def test_sums_of_money_are_exact_in_whatever_order(costs: list[float]) -> None:
    amounts = [Amount.of(1, cost) for cost in costs]
    total = sum(amounts, NOTHING)
    for amount in reversed(amounts):
        total -= amount
    assert total == NOTHING


def test_less_than_nothing_is_nothing() -> None:
    assert Amount.of(-3, -0.5) == NOTHING
    assert Amount.of(3, 0.25).cost_usd == 0.25
    assert nano(0.000_000_15) == 150


def test_a_limit_beyond_counting_is_as_good_as_the_highest() -> None:
    assert nano(1e300) == nano(1e12) == 10**21
    quota = Quota(max_cost_usd=1e300)
    assert refusal("task", quota, Usage(), Amount.of(1, 5.0), now_s=0) is None
    assert dict(shares(quota, Usage(), now_s=0)) == {"max_cost_usd": 0.0}


@pytest.mark.parametrize(
    ("quota", "usage", "asked", "limit", "retry_in_s"),
    [
        (Quota(), Usage(), _tokens(10**9), None, None),
        (Quota(max_tokens=10), Usage(used=_tokens(4), reserved=_tokens(3)), _tokens(3), None, None),
        (Quota(max_tokens=10), Usage(used=_tokens(4), reserved=_tokens(4)), _tokens(3), "max_tokens", RESERVED_WAIT_S),
        (Quota(max_tokens=10), Usage(used=_tokens(8)), _tokens(3), "max_tokens", None),
        (Quota(max_cost_usd=3.0), Usage(used=USD, reserved=USD), USD, None, None),
        (Quota(max_cost_usd=2.5), Usage(used=USD, reserved=USD), USD, "max_cost_usd", RESERVED_WAIT_S),
        (Quota(max_cost_usd=1.5), Usage(used=USD), USD, "max_cost_usd", None),
        (Quota(tokens_per_min=10), Usage(reserved=_tokens(5)), _tokens(5), None, None),
        (Quota(tokens_per_min=10), Usage(reserved=_tokens(8)), _tokens(5), "tokens_per_min", RESERVED_WAIT_S),
        (Quota(tokens_per_min=10), Usage(), _tokens(11), "tokens_per_min", None),
        (Quota(requests_per_min=0), Usage(), NOTHING, "requests_per_min", None),
        (Quota(requests_per_min=1), Usage().started(now_s=95.0), NOTHING, "requests_per_min", 56.0),
        (Quota(requests_per_min=2), Usage().started(now_s=95.0), NOTHING, None, None),
        (Quota(max_concurrent=2), Usage(concurrent=1), NOTHING, None, None),
        (Quota(max_concurrent=1), Usage(concurrent=1), NOTHING, "max_concurrent", RESERVED_WAIT_S),
        (Quota(max_concurrent=0), Usage(), NOTHING, "max_concurrent", None),
    ],
)
def test_what_fits_and_what_does_not(
    quota: Quota, usage: Usage, asked: Amount, limit: str | None, retry_in_s: float | None
) -> None:
    denied = refusal("key", quota, usage, asked, now_s=100.0)
    if limit is None:
        assert denied is None
        return
    assert denied is not None
    assert (denied.level, denied.limit, denied.retry_in_s) == ("key", limit, retry_in_s)
    assert denied.detail.startswith(f"{limit} of its key (")


def test_a_window_says_when_there_is_room() -> None:
    usage = Usage().spent(_tokens(8), now_s=50.0).spent(_tokens(1), now_s=90.0)
    quota = Quota(tokens_per_min=10)
    denied = refusal("user", quota, usage, _tokens(5), now_s=100.0)
    assert denied is not None
    assert denied.retry_in_s == pytest.approx(51 + WINDOW_S - 100)
    assert refusal("user", quota, usage, _tokens(5), now_s=111.0) is None


def test_of_several_limits_the_one_that_only_a_higher_one_mends_is_named() -> None:
    usage = Usage(concurrent=1, used=_tokens(10))
    denied = refusal("user", Quota(max_concurrent=1, max_tokens=10), usage, _tokens(1), now_s=0.0)
    assert denied is not None
    assert denied.limit == "max_tokens"
    denied = refusal(
        "user", Quota(max_concurrent=0, tokens_per_min=10), Usage(reserved=_tokens(9)), _tokens(2), now_s=0
    )
    assert denied is not None
    assert denied.limit == "max_concurrent"


def test_how_much_of_a_limit_is_used_up() -> None:
    usage = Usage(used=Amount.of(80, 0.5))

    def used(quota: Quota, *, now_s: float = 10.0) -> list[tuple[str, float]]:
        return list(shares(quota, usage, now_s=now_s))

    assert used(Quota(max_concurrent=1)) == []
    assert used(Quota(max_tokens=100, max_cost_usd=2.0)) == [("max_tokens", 0.8), ("max_cost_usd", 0.25)]
    assert used(Quota(max_tokens=0, max_cost_usd=0.0)) == [("max_tokens", 1.0), ("max_cost_usd", 1.0)]
    usage = Usage().spent(_tokens(30), now_s=9.0).started(now_s=9.0)
    windows = Quota(tokens_per_min=40, requests_per_min=2)
    assert used(windows) == [("tokens_per_min", 0.75), ("requests_per_min", 0.5)]
    assert used(windows, now_s=9.0 + WINDOW_S + 1) == [("tokens_per_min", 0.0), ("requests_per_min", 0.0)]


def test_an_endpoint_that_said_nothing_takes_everything() -> None:
    provider = Provider().told(ProviderLimits(), now_s=10.0).called(_tokens(10**9))
    assert provider == Provider()
    assert provider.refusal(_tokens(10**9), now_s=10.0) is None


def test_an_endpoint_that_said_to_wait_is_waited_for() -> None:
    provider = Provider().told(ProviderLimits(retry_after_s=7.0), now_s=10.0)
    # A shorter wait that was told later opens nothing.
    provider = provider.told(ProviderLimits(retry_after_s=-1.0), now_s=10.0)
    denied = provider.refusal(NOTHING, now_s=12.0)
    assert denied is not None
    assert (denied.level, denied.limit, denied.retry_in_s) == ("model", PROVIDER, 5.0)
    assert provider.refusal(NOTHING, now_s=17.0) is None


def test_what_an_endpoint_has_left_is_shared_until_it_begins_anew() -> None:
    limits = ProviderLimits(requests_left=2, requests_reset_s=20.0, tokens_left=100)
    provider = Provider().told(limits, now_s=0.0).called(_tokens(60))
    assert provider.refusal(_tokens(40), now_s=1.0) is None
    # What others will call for first is theirs, tokens and requests.
    assert provider.refusal(_tokens(20), promised=[_tokens(21)], now_s=1.0) is not None
    assert provider.refusal(_tokens(20), promised=[_tokens(1)], now_s=1.0) is not None
    assert (
        provider.told(ProviderLimits(requests_left=2), now_s=0.0).refusal(
            _tokens(20), promised=[_tokens(20)], now_s=1.0
        )
        is None
    )
    short = provider.refusal(_tokens(41), now_s=1.0)
    assert short is not None
    # It did not say when: in a minute.
    assert short.retry_in_s == WINDOW_S - 1
    provider = provider.called(_tokens(1))
    gone = provider.refusal(_tokens(1), now_s=1.0)
    assert gone is not None
    assert gone.retry_in_s == 19.0
    assert provider.refusal(_tokens(1), now_s=20.0) is None
    again = provider.told(ProviderLimits(requests_left=1, tokens_left=1, tokens_reset_s=5.0), now_s=20.0)
    assert again.refusal(_tokens(1), now_s=20.0) is None


@pytest.mark.parametrize(
    ("quota", "unwritten", "calls", "fits"),
    [
        (Quota(), Amount.of(10**12, 1e6), 10**6, True),
        (Quota(max_tokens=400), _tokens(20), 1, True),
        (Quota(max_tokens=400), _tokens(21), 1, False),
        (Quota(max_tokens=400, tokens_per_min=100), _tokens(6), 1, False),
        (Quota(max_cost_usd=20.0), USD, 1, True),
        (Quota(max_cost_usd=19.0), USD, 1, False),
        (Quota(requests_per_min=40), NOTHING, 2, True),
        (Quota(requests_per_min=40, max_concurrent=20), NOTHING, 2, False),
        # Where a twentieth of it is less than a call, none goes ahead.
        (Quota(max_concurrent=19), NOTHING, 1, False),
    ],
)
def test_of_each_limit_a_twentieth_may_be_granted_ahead_of_the_ledger(
    quota: Quota, unwritten: Amount, calls: int, fits: bool
) -> None:
    assert fits_ahead(quota, unwritten, calls=calls) == fits


def test_what_is_withheld_is_what_may_have_been_granted_ahead() -> None:
    assert withheld(Quota()) == Quota()
    quota = Quota(max_tokens=415, max_cost_usd=20.0, tokens_per_min=100, requests_per_min=40, max_concurrent=19)
    assert withheld(quota) == Quota(
        max_tokens=395, max_cost_usd=19.0, tokens_per_min=95, requests_per_min=38, max_concurrent=19
    )
