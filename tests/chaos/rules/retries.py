"""No more retries than a subtask has, each after its wait.

What an attempt costs stands in no row of its own. By the record alone, one that FAILED or TIMED_OUT spends a retry,
with two exceptions: an attempt that is never made since a breaker is open (``BREAKER_OPEN``), and one that is the probe
of its breaker, which only the scheduler knows. So an attempt of a tool whose breaker was open at some time *may* have
been free, but not from twice as many attempts as the subtask has by itself. For the last of its runs `retry_count`
tells how many were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.dag.decision import OWN_TIMEOUTS
from tests.chaos.case import Case, Violation, at
from tests.chaos.record import Attempt, BackOff, Event, Subtask
from tests.chaos.rules import Rules

ROUNDING_S: Final = 0.001
"""Times of workers are floats, those of PostgreSQL have microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """An attempt that did not complete, and the move that followed."""

    attempt: Attempt
    then: Event | None

    @property
    def counts(self) -> bool:
        """Whether it spends a retry, if it was no probe."""
        return self.attempt.status in ("FAILED", "TIMED_OUT") and self.attempt.code != BREAKER_OPEN

    @property
    def may_count(self) -> bool:
        """Whether it spends one after others like it: from the third time in a row."""
        return self.attempt.status == "LOST" and self.attempt.code in OWN_TIMEOUTS

    @property
    def is_retried(self) -> bool:
        """Whether there is another attempt by itself; a task that is cancelled meanwhile cancels that only."""
        turns = self.then is not None and self.then.reason == "fallback"
        return not turns and (self.then is None or self.then.target != "BLOCKED")


def _runs(case: Case, subtask: Subtask) -> list[list[_Failure]]:
    """Its failures in their order: one list for each time that it began to count anew."""
    runs: list[list[_Failure]] = [[]]
    events = case.of(subtask)
    for place, event in enumerate(events):
        ended = case.ended[subtask.id].get(event.attempt or 0)
        if (event.source, event.target) == ("RUNNING", "FAILED") and ended is not None:
            then = next(iter(events[place + 1 : place + 2]), None)
            runs[-1].append(_Failure(attempt=ended, then=then))
        elif event.target == "QUEUED" and (event.source == "BLOCKED" or event.reason == "fallback"):
            runs.append([])
    return runs


def _may_have_been_free(case: Case, subtask: Subtask, failure: _Failure) -> bool:
    if subtask.max_retries == 0 or failure.attempt.attempt > 2 * (subtask.max_retries + 1):
        return False
    attempts = case.ended[subtask.id].values()
    return subtask.tool in case.history.circumstances.breakers or any(each.code == BREAKER_OPEN for each in attempts)


def _spent(case: Case) -> Iterator[Violation]:
    for subtask in case.history.subtasks:
        runs = _runs(case, subtask)
        for run in runs:
            sure = [each for each in run if each.counts and not _may_have_been_free(case, subtask, each)]
            if len(sure) > subtask.max_retries + 1:
                said = f"{len(sure)} attempts that spent a retry, of which it has {subtask.max_retries}"
                yield Violation(rule="retries", what=said, **at(subtask))
        least = sum(
            each.counts and each.is_retried and not _may_have_been_free(case, subtask, each) for each in runs[-1]
        )
        most = min(subtask.max_retries, _most_spent(runs[-1]))
        if not least <= subtask.retry_count <= most:
            said = f"retry_count is {subtask.retry_count}, and {least} to {most} attempts spent one"
            yield Violation(rule="retries", what=said, **at(subtask))


def _most_spent(run: Sequence[_Failure]) -> int:
    return sum((each.counts or each.may_count) and each.is_retried for each in run)


def _waits(case: Case) -> Iterator[Violation]:
    back_off = case.history.circumstances.back_off
    if back_off is None:
        return
    for subtask in case.history.subtasks:
        runs = _runs(case, subtask)
        for run in runs:
            free = sum(each.counts and _may_have_been_free(case, subtask, each) for each in run)
            if run is runs[-1]:
                free = min(free, max(0, _most_spent(run) - subtask.retry_count))
            yield from _early(subtask, run, free, back_off)


def _early(subtask: Subtask, run: Sequence[_Failure], free: int, back_off: BackOff) -> Iterator[Violation]:
    """Retries that came before their time. ``free``: so many failures may have spent nothing, nobody knows which.

    The wait begins with the commit of the end, which is later than the end itself, as the worker told it: that is all
    that the record has of it (an event's time may be later than its transaction's). What was lost with its scheduler
    does not wait: it is queued again as soon as that is known.
    """
    spent = 0
    for failure in run:
        then, ended_at = failure.then, failure.attempt.ended_at
        waits = then is not None and then.target == "QUEUED" and failure.is_retried
        if then is not None and waits and ended_at is not None and failure.attempt.code != "SCHEDULER_LOST":
            retry = 1 + max(0, spent - free) if failure.counts else 0
            least_s = min(back_off.max_s, back_off.initial_s * 2**retry)
            waited_s = then.at.timestamp() - ended_at
            if waited_s < least_s - ROUNDING_S:
                number = failure.attempt.attempt
                said = f"queued {waited_s:.3f} s after attempt {number}, at least {least_s:g} s were due"
                yield Violation(rule="back-off", what=said, **at(subtask))
        spent += failure.counts


RULES: Final[Rules] = (_spent, _waits)
