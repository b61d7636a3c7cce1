"""Ends of attempts, written in batches: what is known only in memory becomes true in one commit."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from rayloom.actors.backlog import Backlog
from rayloom.actors.flight import Flying, unschedulable
from rayloom.actors.settings import EngineSettings
from rayloom.actors.suspects import Suspects
from rayloom.dag.decision import RetryPolicy, decide
from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import Finished
from rayloom.dag.states import SubtaskEvent, SubtaskStatus
from rayloom.db import attempts, engine, leases
from rayloom.db.attempts import Committed, Ending
from rayloom.db.engine import Line
from rayloom.db.refusals import tell_refusal

_log = logging.getLogger(__name__)

BATCH_BYTES = 64 * 1024 * 1024
MAX_TOKENS = 2**48
MAX_AT = 2**40
"""In seconds since 1970: PostgreSQL has a date for it."""


class Commits:
    """The outcomes that wait for their commit."""

    def __init__(
        self,
        line: Line,
        backlog: Backlog,
        settings: EngineSettings,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._line, self._backlog, self._settings, self._jitter = line, backlog, settings, jitter
        self._policy = RetryPolicy(initial_s=settings.retry_initial_s, max_s=settings.retry_max_s)
        self._ended: deque[tuple[Flying, Outcome]] = deque()
        self._suspects = Suspects()
        self.finished: list[Finished] = []
        """What the token controller has still to be told."""

    def add(self, flying: Flying, outcome: Outcome) -> None:
        """An attempt has ended."""
        self._ended.append((flying, outcome))

    def __len__(self) -> int:
        return len(self._ended)

    def leases(self) -> frozenset[tuple[str, int]]:
        """(subtask id, attempt) of what waits."""
        return frozenset((flying.claimed.sub_task_id, flying.claimed.attempt) for flying, _ in self._ended)

    async def turn(self) -> Committed:
        """Write down what has ended so far, at most one batch.

        Raises Transient, with nothing lost, when the database is away.
        """
        batch = self._batch()
        if not batch:
            return Committed()
        committed = await self._write([self._ending(flying, outcome) for flying, outcome in batch])
        # Handed over, never begun, and dead: the lease is simply given back.
        unbegun = [
            (flying.claimed.sub_task_id, flying.claimed.attempt)
            for flying, outcome in batch
            if flying.claimed.sub_task_id not in committed.accepted and not outcome.ray_task_id
        ]
        released = await leases.release(self._line, unbegun) if unbegun else ()
        free = {item.sub_task_id for item in released}
        for flying, outcome in batch:
            self._ended.popleft()
            claimed = flying.claimed
            self.finished.append(
                Finished(
                    sub_task_id=claimed.sub_task_id,
                    user_id=claimed.user_id,
                    tokens=outcome.tokens_used,
                    started=claimed.sub_task_id not in free,
                )
            )
        await self._backlog.add(committed.queued + released, tasks=committed.touched)
        settled = committed.accepted | free
        late = [(flying, outcome) for flying, outcome in batch if flying.claimed.sub_task_id not in settled]
        if late:
            await self._tell_late(late)
        return committed

    async def _write(self, endings: Sequence[Ending]) -> Committed:
        if self._suspects.alert and not await engine.takes_writes(self._line):
            raise Transient("DATABASE_UNAVAILABLE", "the database takes no writes")
        try:
            committed = await self._with_refusals(await attempts.complete(self._line, endings))
        except Transient as error:
            if not engine.is_exhausted(error.__cause__) and self._suspects.failed(len(endings)):
                # The others must not wait for it, and it must not come again: its refusal waits in its place.
                flying, outcome = self._ended.popleft()
                why = f"{error.message}: {error.__cause__}"
                _log.error("outcome.given_up", extra={"sub_task_id": flying.claimed.sub_task_id, "why": why})
                self._ended.append((flying, _unstorable(outcome, why)))
            raise
        self._suspects.written(len(endings))
        return committed

    async def _with_refusals(self, committed: Committed) -> Committed:
        for ending, why in committed.refused:
            _log.error("outcome.refused", extra={"sub_task_id": ending.sub_task_id, "why": why})
            committed = committed.joined(await self._record_refusal(ending, why))
        return committed

    async def _tell_late(self, late: Sequence[tuple[Flying, Outcome]]) -> None:
        """Tell which outcomes came to subtasks that had moved on."""
        now: dict[str, str] = {}
        # What was written stands, and is not to be written again only because this can't be looked up.
        with suppress(Transient):
            now = await attempts.statuses(self._line, [flying.claimed.sub_task_id for flying, _ in late])
        for flying, outcome in late:
            claimed = flying.claimed
            status = now.get(claimed.sub_task_id)
            if outcome.verdict == "cancelled" and status == SubtaskStatus.CANCELLED:
                # It was stopped because of that.
                continue
            event = SubtaskEvent.SUCCEEDED if outcome.verdict == "succeeded" else SubtaskEvent.ATTEMPT_FAILED
            tell_refusal(event, source=status, task_id=claimed.task_id, subtask=claimed.key, attempt=claimed.attempt)

    def _batch(self) -> list[tuple[Flying, Outcome]]:
        """What goes into one commit: a bounded number, of bounded size. PostgreSQL takes no message of 1 GiB."""
        batch: list[tuple[Flying, Outcome]] = []
        size = 0
        for flying, outcome in islice(self._ended, self._suspects.limit(self._settings.batch_max)):
            size += outcome.output_size + len(outcome.stdout) + len(outcome.stderr) + len(outcome.log)
            if batch and size > BATCH_BYTES:
                break
            batch.append((flying, outcome))
        return batch

    def _ending(self, flying: Flying, outcome: Outcome) -> Ending:
        claimed = flying.claimed
        if _overran(flying, outcome, self._settings.timeout_grace_s):
            outcome = _timed_out(outcome, claimed.timeout_s)
        elif flying.hopeless and outcome.verdict == "cancelled" and not outcome.ray_task_id:
            outcome = unschedulable(flying.shape)
        decision = decide(
            outcome,
            retry_count=claimed.retry_count,
            max_retries=claimed.max_retries,
            policy=self._policy,
            jitter=self._jitter(),
        )
        return Ending(
            sub_task_id=claimed.sub_task_id,
            attempt=claimed.attempt,
            outcome=outcome,
            retry_in_s=decision.retry_in_s,
            spends=decision.spends,
        )

    async def _record_refusal(self, ending: Ending, why: str) -> Committed:
        """PostgreSQL would not take this outcome even alone: the attempt fails, and says why."""
        outcome = _unstorable(ending.outcome, why)
        recorded = await attempts.complete(self._line, [replace(ending, outcome=outcome, retry_in_s=None)])
        if recorded.refused:
            raise Transient("DATABASE_UNAVAILABLE", f"the refusal of an output was refused: {recorded.refused[0][1]}")
        return recorded


def _unstorable(was: Outcome, why: str) -> Outcome:
    """A failure in the place of an outcome. Only what is surely storable: else the attempt would never end."""
    error = ErrorInfo(
        code="OUTPUT_UNSTORABLE",
        error_class="user",
        message=f"the database refused the output: {why.replace(chr(0), ' ')[:500]}",
        retryable=False,
    )
    has_times = 0 <= was.started_at <= was.finished_at <= MAX_AT
    return Outcome(
        verdict="failed", error=error, tokens_used=min(max(was.tokens_used, 0), MAX_TOKENS),
        started_at=was.started_at if has_times else 0.0, finished_at=was.finished_at if has_times else 0.0,
        worker_id=was.worker_id, node_id=was.node_id, ray_task_id=was.ray_task_id,
    )  # fmt: skip


def _overran(flying: Flying, outcome: Outcome, grace_s: float) -> bool:
    """Whether the worker was killed because the attempt did not stop at its timeout: by itself, or by us."""
    if outcome.verdict == "succeeded" or outcome.ray_task_id:
        return False
    lasted_s = outcome.finished_at - outcome.started_at
    died = outcome.error is not None and outcome.error.code == "WORKER_DIED"
    return flying.overran or (died and lasted_s >= flying.claimed.timeout_s + grace_s)


def _timed_out(outcome: Outcome, timeout_s: float) -> Outcome:
    message = f"the attempt did not end within {timeout_s:g} s and its worker was killed"
    error = ErrorInfo(code="TIMED_OUT", error_class="transient", message=message, retryable=True)
    return replace(outcome, verdict="timed_out", error=error)
