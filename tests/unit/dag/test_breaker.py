"""When a breaker opens, for how long, and what closes it."""

from __future__ import annotations

import pytest

from rayloom.dag.breaker import (
    BREAKER_OPEN,
    Breaker,
    BreakerPolicy,
    BreakerView,
    Call,
    alternative_fault,
    breaker_key,
    said_of_callee,
)
from rayloom.dag.errors import Bug, ErrorInfo, RayloomError, Refused, Transient, UserError
from rayloom.dag.outcome import Outcome, Verdict

POLICY = BreakerPolicy(cooldown_s=5, cooldown_max_s=20, calm_s=600, probe_s=60)
NOW = 1_000_000.0
CLOSED = Breaker()


def _told(breaker: Breaker, *results: bool | None, now: float = NOW, by: str = "s") -> Breaker:
    for succeeded in results:
        breaker = breaker.told(Call(key="t", by=by, succeeded=succeeded), now=now, policy=POLICY)
    return breaker


def _open(now: float = NOW) -> Breaker:
    return _told(CLOSED, *[False] * 5, now=now)


def _probing(by: str = "probe") -> Breaker:
    probing = _open().probed(by, now=NOW + 5, policy=POLICY)
    assert probing is not None
    return probing


def test_five_failures_in_a_row_open_it() -> None:
    assert _told(CLOSED, *[False] * 4).view() is None
    assert _open().view() == BreakerView(state="open", retry_at=NOW + 5)


def test_a_success_begins_the_row_anew() -> None:
    assert _told(CLOSED, *[False] * 4, True, *[False] * 4).state == "closed"


def test_half_of_ten_calls_in_the_window_open_it() -> None:
    mixed = _told(CLOSED, *[True, False] * 4, True)
    assert mixed.state == "closed"
    assert _told(mixed, False).state == "open"
    # A success never opens it, whatever the share.
    assert _told(CLOSED, False, False, False, False, True, False, False, False, True, True).state == "closed"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    old = _told(CLOSED, *[False, True] * 4, now=NOW)
    assert _told(old, False, now=NOW + 59).slots[0][1] == 8
    later = _told(old, False, True, False, now=NOW + 61)
    assert later.state == "closed"
    assert [slot[1:] for slot in later.slots] == [(3, 2)]


def test_a_clock_that_was_set_back_counts_on() -> None:
    assert _told(_told(CLOSED, False, True), False, True, now=NOW - 30).slots[-1][1:] == (4, 2)


def test_what_says_nothing_changes_nothing() -> None:
    assert _told(CLOSED, *[None] * 20) == CLOSED


def test_the_cooldown_doubles_up_to_its_most() -> None:
    breaker, now, waits = _open(), NOW, []
    for _ in range(4):
        assert breaker.retry_at is not None
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        probing = breaker.probed("p", now=now, policy=POLICY)
        assert probing is not None
        breaker = _told(probing, False, by="p", now=now)
    assert waits == [5, 10, 20, 20]


def test_after_a_calm_time_the_cooldown_is_the_first_again() -> None:
    closed = _told(_probing(), True, by="probe", now=NOW + 6)
    assert closed.view() is None
    soon = _told(closed, *[False] * 5, now=NOW + 7)
    calm = _told(closed, *[False] * 5, now=NOW + 6 + 600)
    assert (soon.retry_at, calm.retry_at) == (NOW + 7 + 10, NOW + 606 + 5)


def test_while_it_is_open_nobody_passes_and_nothing_counts() -> None:
    assert _open().probed("a", now=NOW + 4.9, policy=POLICY) is None
    assert _told(_open(), True, False, None) == _open()


def test_exactly_one_probe_passes() -> None:
    probing = _probing()
    assert probing.view() == BreakerView(state="half_open", retry_at=NOW + 65)
    assert probing.probed("other", now=NOW + 6, policy=POLICY) is None
    # Its answer may have been lost: it may ask again.
    assert probing.probed("probe", now=NOW + 6, policy=POLICY) is not None
    # What began before it opened says nothing of now.
    assert _told(probing, True, False, by="straggler") == probing


def test_a_probe_closes_or_opens_it() -> None:
    assert _told(_probing(), True, by="probe").state == "closed"
    failed = _told(_probing(), False, by="probe", now=NOW + 6)
    assert (failed.state, failed.retry_at) == ("open", NOW + 16)


def test_a_probe_that_came_to_nothing_lets_the_next_one_through() -> None:
    idle = _told(_probing(), None, by="probe", now=NOW + 7)
    assert idle.view() == BreakerView(state="half_open", retry_at=NOW + 7)
    assert idle.probed("next", now=NOW + 7, policy=POLICY) is not None


def test_a_probe_that_is_silent_is_given_up() -> None:
    assert _probing().probed("next", now=NOW + 64, policy=POLICY) is None
    late = _probing().probed("next", now=NOW + 65, policy=POLICY)
    assert late is not None
    assert late.probe == "next"


def test_a_closed_breaker_lets_everybody_through() -> None:
    assert CLOSED.probed("a", now=NOW, policy=POLICY) == CLOSED


def test_opened_by_hand_it_stays_so_until_it_is_closed_by_hand() -> None:
    shut = CLOSED.opened_by_hand()
    assert shut.view() == BreakerView(state="open", retry_at=None)
    assert shut.probed("a", now=NOW + 10**9, policy=POLICY) is None
    assert _told(shut, True) == shut
    assert shut.closed(NOW).view() is None


def test_what_is_shown() -> None:
    view = BreakerView(state="open", retry_at=NOW + 5)
    assert (view.wait_s(NOW), view.state_at(NOW)) == (5, "open")
    assert (view.wait_s(NOW + 6), view.state_at(NOW + 6)) == (0, "half_open")
    by_hand = BreakerView(state="open", retry_at=None)
    assert (by_hand.wait_s(NOW), by_hand.state_at(NOW)) == (None, "open")


def test_the_tools_of_one_server_share_a_breaker() -> None:
    assert breaker_key("git.status", "MCP") == breaker_key("git.log", "MCP") == "git"
    assert breaker_key("http.request", "NATIVE") == "http.request"


def _outcome(error: RayloomError | None, verdict: Verdict = "failed", *, called: bool = True) -> Outcome:
    info = ErrorInfo.from_exception(error) if error else None
    return Outcome(verdict=verdict, error=info, called=called, worker_id="w")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (_outcome(None, "succeeded"), True),
        (_outcome(Transient("HTTP_503", "x")), False),
        (_outcome(Bug("TOOL_CRASHED", "x")), False),
        (_outcome(Bug("TOOL_OUTPUT_INVALID", "x")), False),
        (_outcome(Transient("TIMED_OUT", "x"), "timed_out"), False),
        # It waited for our own database, or hung in its tool until its worker was killed.
        (_outcome(Transient("TIMED_OUT", "x"), "timed_out", called=False), None),
        (Outcome(verdict="timed_out"), False),
        (_outcome(Transient("HTTP_429", "x", retry_after_s=5)), None),
        (_outcome(UserError("HTTP_404", "x")), None),
        (_outcome(Refused("ADDRESS", "x")), None),
        (_outcome(Bug("INTERNAL", "x")), None),
        (_outcome(Transient(BREAKER_OPEN, "x"), called=False), None),
        (_outcome(Transient("WORKER_DIED", "x"), called=False), None),
        (_outcome(Transient("NODE_LOST", "x"), "lost"), None),
        (_outcome(Refused("CANCELLED", "x"), "cancelled"), None),
        (_outcome(None), None),
    ],
)
def test_what_the_end_of_an_attempt_says_of_its_tool(outcome: Outcome, said: bool | None) -> None:
    assert said_of_callee(outcome) is said


def test_alternatives_never_lead_in_a_circle() -> None:
    assert alternative_fault("a", "b", {}) is None
    assert alternative_fault("a", "b", {"b": "c"}) is None
    assert alternative_fault("a", "a", {}) == "the alternatives would go in a circle: a -> a"
    assert (
        alternative_fault("a", "b", {"b": "c", "c": "a"}) == "the alternatives would go in a circle: a -> b -> c -> a"
    )
