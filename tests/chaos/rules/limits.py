"""No user has more attempts running at once than its limit."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.chaos.case import Case, Violation, at
from tests.chaos.record import Subtask
from tests.chaos.rules import Rules

FORGETFUL_S: Final = 30.0
"""So long after the token controller was hit something may begin that its former life had admitted, and that its next
one does not know of: it was being claimed when the leases were read anew. (The leases are read again every 5 s; a claim
may wait for a scheduler, or a PostgreSQL, that is stopped for 6 s, or is being started again.) That is one batch, and a
batch is never more than the limit: so until then a user may have twice its limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One attempt that was under way, in seconds since the epoch."""

    begun_at: float
    ended_at: float
    subtask: Subtask
    attempt: int


def _over_limit(case: Case) -> Iterator[Violation]:
    runs: dict[str, list[_Run]] = defaultdict(list)
    for subtask in case.history.subtasks:
        task = case.tasks.get(subtask.task_id)
        if task is not None and task.user in case.history.limits:
            runs[task.user] += _runs(case, subtask)
    for user, of_user in runs.items():
        limit, ends = case.history.limits[user], list[float]()
        for run in sorted(of_user, key=lambda each: each.begun_at):
            while ends and ends[0] <= run.begun_at:
                heapq.heappop(ends)
            heapq.heappush(ends, run.ended_at)
            allowed = 2 * limit if _may_have_forgotten(case, run.begun_at) else limit
            if len(ends) > allowed:
                said = f"attempt {run.attempt} began at {run.begun_at:.3f} as number {len(ends)} of {allowed} of {user}"
                yield Violation(rule="over the limit", what=said, **at(run.subtask))


def _runs(case: Case, subtask: Subtask) -> Iterator[_Run]:
    """Its attempts, each no longer than its lease was, by which the controller counts.

    It begins when the record says so or, if that was told only at its end, when its worker says so. It ends with the
    event that tells its end, since room is made only by what is committed. But what was lost with its scheduler did not
    run until its lease was taken back: Ray ends what a dead process had started. It counts until that life was over.
    """
    queued_at, begun_at, number = 0.0, None, 0
    for event in case.of(subtask):
        moment = event.at.timestamp()
        if event.target == "QUEUED":
            queued_at = moment
        elif (event.source, event.target) == ("QUEUED", "RUNNING"):
            number = event.attempt or 0
            ended = case.ended[subtask.id].get(number)
            told_at = moment if ended is None or ended.started_at is None else ended.started_at
            begun_at = max(queued_at, min(moment, told_at))
        elif event.source == "RUNNING" and event.target != "RUNNING" and begun_at is not None:
            ended = case.ended[subtask.id].get(number)
            is_lost = ended is not None and ended.code == "SCHEDULER_LOST"
            ended_at = min(moment, _life_over_at(case, begun_at)) if is_lost else moment
            yield _Run(begun_at=begun_at, ended_at=ended_at, subtask=subtask, attempt=number)
            begun_at = None
    if begun_at is not None:
        yield _Run(begun_at=begun_at, ended_at=float("inf"), subtask=subtask, attempt=number)


def _life_over_at(case: Case, moment: float) -> float:
    return min(
        (
            life.ended_at
            for life in case.history.lives
            if life.ended_at is not None and life.started_at <= moment <= life.ended_at
        ),
        default=float("inf"),
    )


def _may_have_forgotten(case: Case, moment: float) -> bool:
    return any(upset.began_at <= moment <= upset.ended_at + FORGETFUL_S for upset in case.history.circumstances.upsets)


RULES: Final[Rules] = (_over_limit,)
