"""What follows the end of an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from rayloom.dag.outcome import Outcome
from rayloom.dag.retry import delay_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The back-off of retries, in seconds (contract section 5, guarantee 6)."""

    initial_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``retry_in_s``: seconds until the next attempt, None when there is none. ``spends``: it counts as a retry."""

    retry_in_s: float | None
    spends: bool


def decide(outcome: Outcome, *, retry_count: int, max_retries: int, policy: RetryPolicy, jitter: float) -> Decision:
    """Whether and when a subtask is tried again. ``jitter`` is a random number from 0 to 1, handed in.

    A lost node or scheduler is nobody's fault and spends no retry, nor does an attempt for which something was away
    before its tool was called; everything else that is retryable spends one. The wait is never
    shorter than what the other side asked for (``Retry-After``).
    """
    if outcome.verdict == "succeeded":
        return Decision(retry_in_s=None, spends=False)
    if outcome.verdict in ("lost", "cancelled"):
        # Soon, but not at once: whatever took the node away may take the next one too.
        return Decision(
            retry_in_s=delay_s(0, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter), spends=False
        )
    error = outcome.error
    if error is None or not error.retryable or retry_count >= max_retries:
        return Decision(retry_in_s=None, spends=True)
    wait_s = delay_s(retry_count + 1, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter)
    return Decision(retry_in_s=max(wait_s, error.retry_after_s or 0.0), spends=True)
