"""What keeps work from being stuck for ever: heartbeats, dead schedulers' leases, back-offs, deadlines, letters."""

from __future__ import annotations

import logging
import time
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.flight import Flight
from rayloom.actors.letters import LetterKeeper
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import ErrorInfo
from rayloom.db import approvals, incarnations, leases, task_moves

_log = logging.getLogger(__name__)

LOST_WORKER_GRACE_S = 60.0
"""Over an attempt's timeout before its worker is killed from outside: the worker's own watch should have come first."""

SILENT_WORKER_GRACE_S = 300.0
"""The same for an attempt of which no worker ever said anything: it may just be waiting in Ray."""


class Reaper:
    """Returns expired leases, and everything else that time alone brings about. Sweeps are bounded."""

    def __init__(
        self,
        engine: AsyncEngine,
        backlog: Backlog,
        flight: Flight,
        commits: Commits,
        letters: LetterKeeper,
        settings: EngineSettings,
    ) -> None:
        self._engine, self._backlog, self._flight, self._settings = engine, backlog, flight, settings
        self._commits, self._letters = commits, letters
        self._next_sweep = 0.0
        self._suspects: frozenset[tuple[str, int]] = frozenset()

    async def beat(self, incarnation: UUID) -> bool:
        """Do everything that is due. False: somebody declared us dead; our leases are no longer ours."""
        if not await incarnations.heartbeat(self._engine, incarnation, lease_s=self._settings.lease_s):
            return False
        await self.requeue()
        await self.expire()
        await self.expire_approvals()
        await self.recover()
        await self.stop_stale(incarnation)
        self._flight.kill_stubborn(self._settings.stop_grace_s + 0.4)
        await self._backlog.put_back_held()
        if not self._backlog.redis_away:
            await self._letters.mirror()
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + self._settings.sweep_s
            await self._backlog.sweep()
            await self.reclaim(incarnation)
            await self._letters.forget()
        elif self._backlog.sweep_due:
            await self._backlog.sweep()
        return True

    async def requeue(self) -> None:
        """Queue again what has waited out its back-off."""
        while True:
            due = await leases.requeue_due(self._engine)
            if not due.queued:
                return
            await self._backlog.add(due.queued, tasks=due.touched)

    async def recover(self) -> None:
        """Take back the leases of schedulers that are dead."""
        dead = await incarnations.dead_with_leases(self._engine)
        while dead:
            taken = await leases.recover(self._engine, dead)
            if not taken.queued:
                return
            _log.warning("leases.recovered", extra={"count": len(taken.queued)})
            await self._backlog.add(taken.queued, tasks=taken.touched)

    async def reclaim(self, incarnation: UUID) -> None:
        """Take back leases of our own that never reached us: their claim was committed, and its answer lost.

        One that is not known here at two sweeps in a row is such a one: a claim under way is over by then.
        """
        unknown = await leases.leases_of(self._engine, incarnation) - self._known()
        # What was unclaimed since the last look may be claimed again, under its number: such a claim is seen anew.
        # Taken and judged in one step: no claim can be unclaimed, and made again, between the two.
        unclaimed, self._flight.unclaimed = self._flight.unclaimed, set()
        # Again, because an attempt may have been started, or have ended, meanwhile.
        unknown -= self._known() | unclaimed
        orphans = unknown & self._suspects
        self._suspects = unknown - orphans
        if orphans:
            taken = await leases.recover(self._engine, [incarnation], only=sorted(orphans))
            _log.warning("leases.reclaimed", extra={"count": len(taken.queued)})
            await self._backlog.add(taken.queued, tasks=taken.touched)

    def _known(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._flight.leases()) | self._commits.leases()

    async def expire(self) -> None:
        """Fail the tasks whose deadline has passed, and stop what runs of them."""
        for task_id in await task_moves.expired_tasks(self._engine):
            error = ErrorInfo(
                code="DEADLINE_EXCEEDED", error_class="user", message="the task's deadline has passed", retryable=False
            )
            ended = await task_moves.end_task(
                self._engine, task_id, status="FAILED", error=error, reason="DEADLINE_EXCEEDED"
            )
            self._flight.stop_all(ended.stopped, grace_s=self._settings.stop_grace_s)
            await self._backlog.add((), tasks=[str(task_id)])

    async def expire_approvals(self) -> None:
        """Reject what has waited for approval for too long."""
        ttl_s = self._settings.approval_ttl_s
        for task_id in await approvals.expired_plans(self._engine, ttl_s=ttl_s):
            decided = await approvals.reject(
                self._engine, task_id, subtask=None, reason=approvals.EXPIRED, plan_ttl_s=ttl_s
            )
            await self._backlog.add(decided.queued, tasks=[str(task_id)])
        expired = await approvals.expire(self._engine, ttl_s=ttl_s)
        if expired.touched:
            await self._backlog.add(expired.queued, tasks=expired.touched)

    async def stop_stale(self, incarnation: UUID) -> None:
        """Stop attempts whose lease is gone, and those that have overrun their timeout by far."""
        ours = self._flight.leases()
        if not ours:
            return
        held = await leases.held_leases(
            self._engine, ours, incarnation=incarnation,
            grace_s=LOST_WORKER_GRACE_S, silent_grace_s=SILENT_WORKER_GRACE_S,
        )  # fmt: skip
        current = dict(self._flight.attempts)
        for sub_task_id, attempt in ours:
            flying = current.get(sub_task_id)
            if flying is None or flying.claimed.attempt != attempt:
                continue
            overdue = held.get(sub_task_id)
            if sub_task_id not in held or overdue == "silent":
                # A silent one that only waits in Ray ends with that, and is queued again. One whose process is blocked
                # does not hear it, and is killed later.
                self._flight.stop(sub_task_id, attempt)
            elif overdue == "overran":
                flying.overran = True
                self._flight.kill(flying)
