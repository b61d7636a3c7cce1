"""Ends of attempts, written in batches: what is known only in memory becomes true in one commit."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from time import monotonic

from rayloom.actors.backlog import Backlog
from rayloom.actors.flight import Flying, unschedulable
from rayloom.actors.settings import EngineSettings
from rayloom.actors.suspects import Suspects
from rayloom.dag.decision import OUT_OF_MEMORY, Past, RetryPolicy, decide, is_lost_to_blobs, is_lost_to_database
from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import Finished
from rayloom.dag.resources import NodeShape, with_more_memory
from rayloom.dag.states import SubtaskEvent, SubtaskStatus
from rayloom.db import attempts, engine, history, leases, log_lines
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
        on_ended: Callable[[Flying, Outcome], None] = lambda _flying, _outcome: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._line, self._backlog, self._settings, self._jitter = line, backlog, settings, jitter
        self._on_ended = on_ended
        self._policy = RetryPolicy(initial_s=settings.retry_initial_s, max_s=settings.retry_max_s)
        self._ended: deque[tuple[Flying, Outcome]] = deque()
        self._suspects = Suspects()
        self.nodes: Sequence[NodeShape] = ()
        """Every kind of node that there is or could be."""
        self.finished: list[Finished] = []
        """What the token controller has still to be told."""

    def add(self, flying: Flying, outcome: Outcome) -> None:
        """An attempt has ended."""
        self._ended.append((flying, outcome))

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, sub_task_id: str) -> bool:
        """Whether an end of this subtask waits. Looks through all of them."""
        return any(flying.claimed.sub_task_id == sub_task_id for flying, _ in self._ended)

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
        past = await self._past(batch)
        endings = [self._ending(flying, outcome, past) for flying, outcome in batch]
        committed = await self._write(endings)
        await self._give_more_memory([(flying, ending) for (flying, _), ending in zip(batch, endings, strict=True)])
        # Handed over, never begun, and dead: the lease is simply given back.
        unbegun = [
            (flying.claimed.sub_task_id, flying.claimed.attempt)
            for flying, outcome in batch
            if flying.claimed.sub_task_id not in committed.accepted and not outcome.is_from_worker
        ]
        released = await leases.release(self._line, unbegun) if unbegun else ()
        free = {item.sub_task_id for item in released}
        for (flying, outcome), ending in zip(batch, endings, strict=True):
            self._ended.popleft()
            claimed = flying.claimed
            self._on_ended(flying, ending.outcome)
            self.finished.append(
                Finished(
                    sub_task_id=claimed.sub_task_id,
                    user_id=claimed.user_id,
                    tokens=outcome.tool_tokens,
                    started=claimed.sub_task_id not in free and not flying.turns,
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
        for ending in committed.bereft:
            _log.error(
                "outcome.bereft", extra={"sub_task_id": ending.sub_task_id, "sha256": ending.outcome.output_blob}
            )
            committed = committed.joined(await self._record_loss(ending))
        return committed

    async def _tell_late(self, late: Sequence[tuple[Flying, Outcome]]) -> None:
        """Tell which outcomes came to subtasks that had moved on."""
        now: dict[str, str] = {}
        # What was written stands, and is not to be written again only because this can't be looked up.
        with suppress(Transient):
            now = await attempts.statuses(self._line, [flying.claimed.sub_task_id for flying, _ in late])
        stopped: list[LogLine] = []
        for flying, outcome in late:
            claimed = flying.claimed
            status = now.get(claimed.sub_task_id)
            if status == SubtaskStatus.CANCELLED and outcome.verdict != "succeeded" and flying.stopping_at is not None:
                # It was stopped because of that.
                stopped.append(_stopped(flying, flying.stopping_at))
                continue
            if outcome.verdict == "cancelled" and status == SubtaskStatus.CANCELLED:
                continue
            event = SubtaskEvent.SUCCEEDED if outcome.verdict == "succeeded" else SubtaskEvent.ATTEMPT_FAILED
            tell_refusal(event, source=status, task_id=claimed.task_id, subtask=claimed.key, attempt=claimed.attempt)
        # The row of the attempt says the same: a log that can't be written now is not waited for.
        with suppress(Transient):
            await log_lines.append(self._line, stopped)

    def _batch(self) -> list[tuple[Flying, Outcome]]:
        """What goes into one commit: a bounded number, of bounded size. PostgreSQL takes no message of 1 GiB."""
        batch: list[tuple[Flying, Outcome]] = []
        size = 0
        for flying, outcome in islice(self._ended, self._suspects.limit(self._settings.batch_max)):
            inline = 0 if outcome.output_blob else outcome.output_size
            size += inline + len(outcome.stdout) + len(outcome.stderr) + len(outcome.log)
            if batch and size > BATCH_BYTES:
                break
            batch.append((flying, outcome))
        return batch

    async def _past(self, batch: Sequence[tuple[Flying, Outcome]]) -> Mapping[str, Past]:
        """How earlier attempts ended, of those for which it matters: few, and rarely any."""
        asked = [
            flying.claimed.sub_task_id
            for flying, outcome in batch
            if is_lost_to_database(outcome) or is_lost_to_blobs(outcome) or _starved(outcome)
        ]
        return await history.past(self._line, asked) if asked else {}

    async def _give_more_memory(self, endings: Sequence[tuple[Flying, Ending]]) -> None:
        """Who ran out of memory, and is tried again, asks for more of it. If that can't be written: as before."""
        wider = {}
        for flying, ending in endings:
            more = with_more_memory(flying.shape, self.nodes) if _starved(ending.outcome) else None
            if more is not None and ending.retry_in_s is not None:
                wider[ending.sub_task_id, ending.attempt] = more
        if wider:
            with suppress(Transient):
                await history.reshape(self._line, wider)

    def _ending(self, flying: Flying, outcome: Outcome, past: Mapping[str, Past]) -> Ending:
        claimed = flying.claimed
        if _overran(flying, outcome, self._settings.timeout_grace_s):
            outcome = _timed_out(outcome, claimed.timeout_s)
        elif flying.hopeless and outcome.verdict == "cancelled" and not outcome.is_from_worker:
            outcome = unschedulable(flying.shape)
        decision = decide(
            outcome,
            retry_count=claimed.retry_count,
            max_retries=claimed.max_retries,
            policy=self._policy,
            jitter=self._jitter(),
            past=past.get(claimed.sub_task_id, Past()),
            is_probe=flying.is_probe,
            attempt=claimed.attempt,
        )
        return Ending(
            sub_task_id=claimed.sub_task_id,
            attempt=claimed.attempt,
            outcome=outcome,
            retry_in_s=decision.retry_in_s,
            spends=decision.spends,
            use_fallback=flying.turns,
        )

    async def _record_loss(self, ending: Ending) -> Committed:
        """Its output was collected before anything could refer to it: the attempt is lost, and spends no retry."""
        again = replace(ending, outcome=_bereft(ending.outcome), retry_in_s=self._policy.initial_s, spends=False)
        return await attempts.complete(self._line, [again])

    async def _record_refusal(self, ending: Ending, why: str) -> Committed:
        """PostgreSQL would not take this outcome even alone: the attempt fails, and says why."""
        outcome = _unstorable(ending.outcome, why)
        recorded = await attempts.complete(self._line, [replace(ending, outcome=outcome, retry_in_s=None)])
        if recorded.refused:
            raise Transient("DATABASE_UNAVAILABLE", f"the refusal of an output was refused: {recorded.refused[0][1]}")
        return recorded


def _stopped(flying: Flying, asked_at: float) -> LogLine:
    """What the log says of an attempt that has ended because its task was."""
    claimed, how = flying.claimed, " by force" if flying.killed_at is not None else ""
    return LogLine(
        at=datetime.now(UTC),
        task_id=claimed.task_id,
        subtask=claimed.key,
        attempt=claimed.attempt,
        message=f"attempt {claimed.attempt} has ended{how}, {monotonic() - asked_at:.2f} s after it was asked to stop",
    )


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
        verdict="failed", error=error, tokens_used=min(was.tool_tokens, MAX_TOKENS),
        started_at=was.started_at if has_times else 0.0, finished_at=was.finished_at if has_times else 0.0,
        worker_id=was.worker_id, node_id=was.node_id, ray_task_id=was.ray_task_id,
    )  # fmt: skip


def _bereft(was: Outcome) -> Outcome:
    message = "the output waited for its commit for so long that the blob store did not keep it"
    error = ErrorInfo(code="OUTPUT_LOST", error_class="transient", message=message, retryable=True)
    return replace(was, verdict="lost", output_blob="", output_size=0, error=error)


def _starved(outcome: Outcome) -> bool:
    return outcome.error is not None and outcome.error.code == OUT_OF_MEMORY


def _overran(flying: Flying, outcome: Outcome, grace_s: float) -> bool:
    """Whether the worker was killed because the attempt did not stop at its timeout: by itself, or by us."""
    if outcome.verdict == "succeeded" or outcome.is_from_worker:
        return False
    lasted_s = outcome.finished_at - outcome.started_at
    died = outcome.error is not None and outcome.error.code == "WORKER_DIED"
    return flying.overran or (died and lasted_s >= flying.claimed.timeout_s + grace_s)


def _timed_out(outcome: Outcome, timeout_s: float) -> Outcome:
    message = f"the attempt did not end within {timeout_s:g} s and its worker was killed"
    error = ErrorInfo(code="TIMED_OUT", error_class="transient", message=message, retryable=True)
    return replace(outcome, verdict="timed_out", error=error)
