"""What follows the end of an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.dag.outcome import Outcome
from rayloom.dag.retry import delay_s

MAX_RETRY_AFTER_S: Final = 86_400.0
"""What the other side asks for is honoured up to here: a slip of its clock must not put anything off for years."""
LOSSES_FREE: Final = 2
"""So many times in a row an attempt may be lost to timeouts of our own stores before it counts as a retry."""
OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"
BLOBS_AWAY: Final = "BLOB_STORE_UNAVAILABLE"
BLOBS_SLOW: Final = "BLOB_STORE_SLOW"
"""What an attempt refers to did not come within its own time: the store may be silent, or it is too much for ever."""
BUDGET_EXCEEDED: Final = "BUDGET_EXCEEDED"
"""The budget of its task does not let a model be called: nothing but a higher one helps."""
QUOTA_EXCEEDED: Final = "QUOTA_EXCEEDED"
"""A limit did not let a model be called: nobody failed."""
QUOTA_WAIT_S: Final = 5.0
"""Its subtask is queued again after at most so long, whatever its limit says: there it is held until there is room, and
so a higher limit is seen long before a window is over."""
OWN_TIMEOUTS: Final = frozenset({"TIMED_OUT", "DATABASE_UNAVAILABLE", BLOBS_SLOW})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What an outcome is judged by beside itself: how earlier attempts of the subtask ended.

    ``out_of_memory``: so many ran out of memory. ``lost``: the last so many in a row were lost to our own timeouts.
    ``without_blobs``: the last so many in a row were lost as the blob store was away.
    """

    out_of_memory: int = 0
    lost: int = 0
    without_blobs: int = 0


_NO_PAST: Final = Past()


def decide(
    outcome: Outcome,
    *,
    retry_count: int,
    max_retries: int,
    policy: RetryPolicy,
    jitter: float,
    past: Past = _NO_PAST,
    is_probe: bool = False,
    attempt: int = 1,
) -> Decision:
    """Whether and when a subtask is tried again. ``jitter`` is a random number from 0 to 1, handed in.

    A lost node or scheduler is nobody's fault and spends no retry, nor does an attempt for which something was away
    before its tool was called, whose tool's breaker is open, or that a quota kept from calling a model; everything else
    that is retryable spends one. Nor does the probe of a breaker (``is_probe``), where there are retries at all: it
    fails for all that wait. But not for ever: from twice as many attempts as it has by itself (``attempt`` is the one
    that ended) it may be at fault, and spends them. So does, from then on, who has paid for calls each time before a
    window is full; not where nothing but a higher limit helps: it is held until there is one. The wait is never shorter
    than what the other side asked for (``Retry-After``). Who runs out of memory is tried again once.
    Who is lost as the blob store is away waits ever longer, as after retries.
    From the third time in a row an attempt that is lost to timeouts of our own database or blob store spends a retry:
    what it wants to read may be too much for ever.
    """
    if outcome.verdict == "succeeded":
        return Decision(retry_in_s=None, spends=False)
    error = outcome.error
    if error is not None and error.code == BREAKER_OPEN and error.retryable:
        wait_s = delay_s(0, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter)
        return Decision(retry_in_s=(error.retry_after_s or 0.0) + wait_s, spends=False)
    is_late = attempt > 2 * (max_retries + 1)
    if error is not None and error.code == QUOTA_EXCEEDED and error.retryable and not _is_futile(outcome, is_late):
        wait_s = delay_s(0, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter)
        return Decision(retry_in_s=max(wait_s, _asked_s(outcome, jitter)), spends=False)
    if is_lost_to_blobs(outcome):
        # Ever later: an attempt that needs a blob holds a worker until it knows that there is none.
        wait_s = delay_s(past.without_blobs, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter)
        return Decision(retry_in_s=max(wait_s, _asked_s(outcome, jitter)), spends=False)
    if outcome.verdict == "cancelled" or (outcome.verdict == "lost" and not _is_spending(outcome, past)):
        # Soon, but not at once: whatever took the node away may take the next one too.
        return Decision(
            retry_in_s=delay_s(0, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter), spends=False
        )
    is_free = is_probe and max_retries > 0 and not is_late
    if error is None or not error.retryable or (retry_count >= max_retries and not is_free):
        return Decision(retry_in_s=None, spends=True)
    if error.code == OUT_OF_MEMORY and past.out_of_memory:
        return Decision(retry_in_s=None, spends=True)
    wait_s = delay_s(retry_count + 1, initial_s=policy.initial_s, max_s=policy.max_s, jitter=jitter)
    return Decision(retry_in_s=max(wait_s, _asked_s(outcome, jitter)), spends=not is_free)


def _is_futile(outcome: Outcome, is_late: bool) -> bool:
    """Whether a denial shows that the attempt pays again and again, and comes no further."""
    # Without a time to wait it is not admitted again before the limit is raised, and so cannot go round and round.
    waits_for_time = outcome.error is not None and outcome.error.retry_after_s is not None
    return is_late and waits_for_time and outcome.model_tokens > 0


def _asked_s(outcome: Outcome, jitter: float) -> float:
    said_s = outcome.error.retry_after_s if outcome.error else None
    if outcome.error is not None and outcome.error.code == QUOTA_EXCEEDED:
        said_s = QUOTA_WAIT_S if said_s is None else min(said_s, QUOTA_WAIT_S)
    asked_s = min(said_s or 0.0, MAX_RETRY_AFTER_S)
    # Who was told the same time must not come back all at once either.
    return asked_s * (1 + jitter / 10)


def is_lost_to_blobs(outcome: Outcome) -> bool:
    """Whether the attempt was lost, before its tool was called, as the blob store was away."""
    return outcome.verdict == "lost" and outcome.error is not None and outcome.error.code == BLOBS_AWAY


def is_lost_to_database(outcome: Outcome) -> bool:
    """Whether the attempt itself was lost, before its tool was called, as our own database or blobs were too slow."""
    code = outcome.error.code if outcome.error else ""
    return outcome.verdict == "lost" and outcome.is_from_worker and code in OWN_TIMEOUTS


def _is_spending(outcome: Outcome, past: Past) -> bool:
    return is_lost_to_database(outcome) and past.lost >= LOSSES_FREE
