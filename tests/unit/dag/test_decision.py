"""What follows each way in which an attempt can end."""

from __future__ import annotations

import pytest

from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.dag.decision import (
    BLOBS_AWAY,
    MAX_RETRY_AFTER_S,
    OUT_OF_MEMORY,
    QUOTA_WAIT_S,
    Decision,
    Past,
    RetryPolicy,
    decide,
)
from rayloom.dag.errors import ErrorInfo, RayloomError, Refused, Transient, UserError
from rayloom.dag.outcome import Outcome, Verdict

POLICY = RetryPolicy(initial_s=1, max_s=60)
STOP = Decision(retry_in_s=None, spends=True)


def _after(
    error: RayloomError | None,
    verdict: Verdict = "failed",
    *,
    retry_count: int = 0,
    jitter: float = 0,
    past: Past | None = None,
    worker_id: str = "",
) -> Decision:
    info = ErrorInfo.from_exception(error) if error else None
    outcome = Outcome(verdict=verdict, error=info, worker_id=worker_id)
    return decide(outcome, retry_count=retry_count, max_retries=3, policy=POLICY, jitter=jitter, past=past or Past())


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


def test_who_may_not_call_a_model_waits_for_the_quota_and_spends_nothing() -> None:
    for retry_count in (0, 99):
        again = _after(Transient("QUOTA_EXCEEDED", "x", retry_after_s=3), retry_count=retry_count)
        assert again == Decision(retry_in_s=3, spends=False)
    assert _after(Transient("QUOTA_EXCEEDED", "x")) == Decision(retry_in_s=QUOTA_WAIT_S, spends=False)
    assert _after(Transient("QUOTA_EXCEEDED", "x", retry_after_s=0)).retry_in_s == 1
    assert _after(Refused("BUDGET_EXCEEDED", "x")) == STOP


def test_who_waits_for_a_window_does_so_in_the_queue_where_a_higher_limit_is_seen() -> None:
    again = _after(Transient("QUOTA_EXCEEDED", "x", retry_after_s=55))
    assert again == Decision(retry_in_s=QUOTA_WAIT_S, spends=False)


def test_what_the_other_side_asks_for_has_jitter_and_a_bound() -> None:
    assert _after(Transient("BUSY", "x", retry_after_s=100), jitter=1).retry_in_s == pytest.approx(110)
    assert _after(Transient("BUSY", "x", retry_after_s=7_200)).retry_in_s == 7_200
    assert _after(Transient("BUSY", "x", retry_after_s=10**9)).retry_in_s == MAX_RETRY_AFTER_S == 86_400


def test_an_open_breaker_is_waited_for_and_spends_nothing() -> None:
    for retry_count in (0, 3):
        open_ = _after(Transient(BREAKER_OPEN, "x", retry_after_s=40), retry_count=retry_count)
        assert open_ == Decision(retry_in_s=41, spends=False)
    assert _after(Transient(BREAKER_OPEN, "x")).retry_in_s == 1


def test_who_runs_out_of_memory_is_tried_again_once() -> None:
    starved = Transient(OUT_OF_MEMORY, "x")
    assert _after(starved) == Decision(retry_in_s=2, spends=True)
    assert _after(starved, retry_count=1, past=Past(out_of_memory=1)) == STOP


@pytest.mark.parametrize("code", ["TIMED_OUT", "DATABASE_UNAVAILABLE", "BLOB_STORE_SLOW"])
def test_losses_to_our_own_database_spend_retries_from_the_third_on(code: str) -> None:
    error = Transient(code, "x")
    for lost in (0, 1):
        free = _after(error, "lost", past=Past(lost=lost), worker_id="w")
        assert free == Decision(retry_in_s=1, spends=False)
    assert _after(error, "lost", past=Past(lost=2), worker_id="w") == Decision(retry_in_s=2, spends=True)
    assert _after(error, "lost", retry_count=3, past=Past(lost=5), worker_id="w") == STOP


def test_who_is_lost_as_the_blob_store_is_away_waits_ever_longer_and_spends_nothing() -> None:
    away = Transient(BLOBS_AWAY, "x", retry_after_s=3)
    found = [_after(away, "lost", past=Past(without_blobs=n), retry_count=9) for n in (0, 1, 2, 5, 6, 5000)]
    assert [decision.retry_in_s for decision in found] == [3, 3, 4, 32, 60, 60]
    assert not any(decision.spends for decision in found)
    assert _after(away, "lost", jitter=1).retry_in_s == pytest.approx(3.3)
    assert _after(away, past=Past(without_blobs=5)) == Decision(retry_in_s=3, spends=True), "its tool was called"


def test_other_losses_are_free_however_many_there_were() -> None:
    for error, id_ in ((Transient("ACTOR_UNAVAILABLE", "x"), "r"), (Transient("TIMED_OUT", "x"), ""), (None, "r")):
        assert not _after(error, "lost", past=Past(lost=9), worker_id=id_).spends


def test_a_probe_that_fails_spends_nothing_unless_there_is_nothing_to_spend() -> None:
    def probe(retry_count: int, max_retries: int, attempt: int = 1) -> Decision:
        outcome = Outcome(verdict="failed", error=ErrorInfo.from_exception(Transient("BUSY", "x")))
        return decide(
            outcome,
            retry_count=retry_count,
            max_retries=max_retries,
            policy=POLICY,
            jitter=0,
            is_probe=True,
            attempt=attempt,
        )

    assert probe(0, 3) == Decision(retry_in_s=2, spends=False)
    assert probe(3, 3) == Decision(retry_in_s=16, spends=False)
    assert probe(0, 0) == STOP
    # One that fails again and again is at fault itself, and must not look for the others for ever.
    assert not probe(0, 3, attempt=8).spends
    assert probe(0, 3, attempt=9).spends
    assert probe(3, 3, attempt=9) == STOP


@pytest.mark.parametrize(("tokens", "attempt", "spends"), [(0, 99, False), (100, 8, False), (100, 9, True)])
def test_who_pays_and_comes_no_further_spends_retries_at_last(tokens: int, attempt: int, spends: bool) -> None:
    assert _denied(tokens, attempt, max_retries=3) == Decision(retry_in_s=QUOTA_WAIT_S, spends=spends)


def test_who_has_no_retries_waits_for_a_window_all_the_same() -> None:
    assert not _denied(100, 1, max_retries=0).spends
    assert not _denied(100, 2, max_retries=0).spends
    assert _denied(100, 3, max_retries=0) == STOP


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_spent_quota_that_only_a_higher_limit_helps_spends_no_retry_ever(max_retries: int) -> None:
    for attempt in (1, 99):
        decided = _denied(100, attempt, max_retries=max_retries, retry_after_s=None)
        assert decided == Decision(retry_in_s=QUOTA_WAIT_S, spends=False)


def _denied(tokens: int, attempt: int, *, max_retries: int, retry_after_s: float | None = 60) -> Decision:
    """After a call of a model was denied, when calls for so many tokens were paid for."""
    info = ErrorInfo.from_exception(Transient("QUOTA_EXCEEDED", "spent", retry_after_s=retry_after_s))
    outcome = Outcome(verdict="failed", error=info, model_tokens=tokens)
    return decide(outcome, retry_count=0, max_retries=max_retries, policy=POLICY, jitter=0, attempt=attempt)
