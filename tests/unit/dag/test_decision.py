"""What follows each way in which an attempt can end."""

from __future__ import annotations

import pytest

from rayloom.dag.decision import Decision, RetryPolicy, decide
from rayloom.dag.errors import ErrorInfo, RayloomError, Refused, Transient, UserError
from rayloom.dag.outcome import Outcome, Verdict

POLICY = RetryPolicy(initial_s=1, max_s=60)
STOP = Decision(retry_in_s=None, spends=True)


def _after(
    error: RayloomError | None, verdict: Verdict = "failed", *, retry_count: int = 0, jitter: float = 0
) -> Decision:
    info = ErrorInfo.from_exception(error) if error else None
    outcome = Outcome(verdict=verdict, error=info)
    return decide(outcome, retry_count=retry_count, max_retries=3, policy=POLICY, jitter=jitter)


def test_success_needs_nothing_more() -> None:
    assert _after(None, "succeeded") == Decision(retry_in_s=None, spends=False)


def test_the_world_is_tried_again_ever_later_until_the_retries_are_spent() -> None:
    waits = [_after(Transient("BUSY", "x"), retry_count=n).retry_in_s for n in range(4)]
    assert waits == [2, 4, 8, None]
    assert _after(Transient("BUSY", "x")).spends


def test_a_time_out_is_tried_again_like_any_failure() -> None:
    assert _after(Transient("TIMEOUT", "x"), "timed_out") == Decision(retry_in_s=2, spends=True)


def test_jitter_and_retry_after_only_lengthen_the_wait() -> None:
    assert _after(Transient("BUSY", "x"), jitter=1).retry_in_s == 3
    assert _after(Transient("BUSY", "x", retry_after_s=100)).retry_in_s == 100
    assert _after(Transient("BUSY", "x", retry_after_s=0.1)).retry_in_s == 2


@pytest.mark.parametrize("error", [UserError("A", "x"), Refused("B", "x"), None])
def test_what_no_attempt_would_mend_stops_at_once(error: RayloomError | None) -> None:
    assert _after(error) == STOP


@pytest.mark.parametrize("verdict", ["lost", "cancelled"])
def test_a_lost_attempt_spends_no_retry_however_many_there_were(verdict: Verdict) -> None:
    for retry_count in (0, 3, 99):
        assert _after(None, verdict, retry_count=retry_count) == Decision(retry_in_s=1, spends=False)
