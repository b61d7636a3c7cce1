"""The scheduler: one loop that writes down what has ended and starts what has become ready, and its helpers.

Everything it holds can be rebuilt: leases are rows, the queue is rows, timers are rows. Several may run at once on one
database; each claims for its own incarnation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from rayloom.actors.backlog import Backlog
from rayloom.actors.blob_collector import BlobCollector
from rayloom.actors.commits import Commits
from rayloom.actors.dispatch import Dispatch
from rayloom.actors.flight import Flight, Flying, Lane
from rayloom.actors.letters import LetterKeeper
from rayloom.actors.nodes import ClusterView
from rayloom.actors.pace import Pace
from rayloom.actors.passing import Passing
from rayloom.actors.planning import Planning
from rayloom.actors.reaper import Reaper
from rayloom.actors.settings import WorkerSettings
from rayloom.actors.timers import Timers
from rayloom.actors.trouble import Trouble, is_away
from rayloom.actors.webhooks import Webhooks
from rayloom.dag.errors import RayloomError
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import AdmissionPort, Health, RegistryPort, Waiting
from rayloom.dag.replan import PlannerPort
from rayloom.dag.resources import NodeShape
from rayloom.db import incarnations
from rayloom.db.attempts import Claimed
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import Line, make_engine
from rayloom.db.queue import TASKS, WAKE, ReadyQueue, Signals, make_redis

_log = logging.getLogger(__name__)

NAME = "rayloom-scheduler"
AGAIN_S = 0.3
NODES_S = 2.0
CLOSE_S = 2.0
LISTEN_S = 5.0


class Scheduler:
    """See the module. ``actor`` names the singleton that this is a life of."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        lane: Lane,
        registry: RegistryPort,
        tokens: AdmissionPort,
        parser: PlannerPort,
        look: Callable[[], Awaitable[ClusterView]],
        actor: str,
    ) -> None:
        engine, database = settings.engine, settings.database
        self._settings, self._actor, self._look, self._registry = engine, actor, look, registry
        self._awake, self._split_awake = asyncio.Event(), asyncio.Event()
        size, more = database.pool_size, database.max_overflow
        self._engine = make_engine(database.primary_dsn(), pool_size=size, max_overflow=more, name=NAME)
        self._redis = make_redis(settings.redis, name=NAME)
        blobs = BlobStore(self._engine, self._redis, settings.blobs)
        self._backlog = Backlog(self._engine, ReadyQueue(self._redis), on_queued=self._awake.set)
        # Commits and claims take turns in one loop, so they share one line.
        self._line = Line(self._engine)
        self._passing = Passing(self._line, self._backlog, registry)
        self._commits = Commits(self._line, self._backlog, engine, on_ended=self._passing.ended)
        self._flight = Flight(lane, self._ended)
        self._dispatch = Dispatch(self._line, self._backlog, self._commits, self._flight, tokens, self._passing, engine)
        letters = LetterKeeper(self._engine, self._redis, retention_s=engine.dead_letter_retention_s)
        self._reaper = Reaper(self._engine, self._backlog, self._flight, self._commits, letters, engine)
        self._planning = Planning(
            self._engine, blobs, self._backlog, parser, engine, on_room=self._split_awake.set, on_closed=self._tell_ends
        )
        self._collector = BlobCollector(self._engine, blobs, grace_s=settings.blobs.grace_s, every_s=engine.sweep_s)
        self._webhooks = Webhooks.of(settings, self._engine, blobs)
        self._view, self._beat_trouble = ClusterView(), Trouble()
        self._incarnation: UUID | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._closing, self._turns, self._pace = False, 0, Pace()
        self._timers = Timers(self._awake.set)
        self._held_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin a life, take back what earlier lives left, and start the loops."""
        loops = [self._live, self._turn, self._listen, self._split]
        loops += [self._watch_nodes, self._watch_tools, self._passing.tell, self._collector.run]
        loops += [] if self._webhooks is None else [self._webhooks.run]
        self._loops = [asyncio.create_task(self._forever(loop), name=loop.__name__) for loop in loops]

    async def close(self) -> None:
        """End this life in order: leases are given back at once, not after their time."""
        self._closing = True
        for loop in self._loops:
            loop.cancel()
        # The Redis client swallows a cancellation that reaches it while it connects: don't wait for that loop for ever.
        await asyncio.wait(self._loops, timeout=CLOSE_S)
        await self._timers.close(within_s=CLOSE_S)
        await self._planning.close()
        if self._webhooks is not None:
            await self._webhooks.close()
        await self._write_down_the_last()
        for flying in self._flight:
            self._flight.kill(flying)
        if self._incarnation is not None:
            await incarnations.end_incarnation(self._engine, self._incarnation)
        await self._line.drop()
        await self._redis.aclose()
        await self._engine.dispose()

    async def _write_down_the_last(self) -> None:
        """What has ended is not to be run again: commit it, if the database takes it now."""
        try:
            async with asyncio.timeout(CLOSE_S):
                while len(self._commits):
                    await self._commits.turn()
        except (TimeoutError, RayloomError) as error:
            _log.warning("scheduler.ends_left", extra={"count": len(self._commits), "error": str(error)})

    # -- what others ask of it -------------------------------------------------------------------------------------

    async def wake(self) -> None:
        """There is new work."""
        self._backlog.dirty = True
        self._awake.set()
        self._split_awake.set()

    async def stop(self, attempts: Sequence[tuple[str, int]]) -> None:
        """Stop these running attempts (subtask id, attempt number)."""
        self._flight.stop_all(attempts, grace_s=self._settings.stop_grace_s)

    async def nodes(self) -> Sequence[NodeShape]:
        """Every kind of node that the cluster has or could start."""
        return (*self._view.nodes, *self._view.types)

    async def waiting(self, sub_task_id: str, user_id: str, shape: str) -> Waiting:
        """What it knows of a QUEUED subtask."""
        return self._dispatch.waiting(sub_task_id, user_id, shape)

    async def knows_tools(self, version: int) -> bool:
        """Wait until what it starts is judged by the tools of this version or a newer one. False: not in time."""
        return await self._passing.known(version)

    async def health(self) -> Health:
        """Alive, with counts of what it holds."""
        return {
            "status": "ok" if self._incarnation is not None else "starting",
            "incarnation": str(self._incarnation),
            "in_flight": len(self._flight),
            "uncommitted": len(self._commits),
            **self._planning.counts(),
            "waiting": sum(self._backlog.waiting.values()),
            "halted": len(self._backlog.halted),
            "redis": "away" if self._backlog.redis_away else "ok",
            "turns": self._turns,
        }

    # -- its loops -------------------------------------------------------------------------------------------------

    async def _forever(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        trouble = Trouble()
        while True:
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a loop of the scheduler goes on whatever happens
                trouble.tell(_log, "scheduler.again", error, known=is_away(error), loop=loop.__name__)
            await asyncio.sleep(AGAIN_S)

    async def _live(self) -> None:
        """Begin an incarnation, then beat its heart until somebody ends it."""
        # Else it would call what a breaker is known to be open for. Without the registry it goes on without.
        await self._passing.known(1)
        incarnation = uuid7()
        await incarnations.begin_incarnation(
            self._engine, incarnation, actor=self._actor, exclusive=self._settings.exclusive
        )
        try:
            await self._reaper.recover()
            self._incarnation = self._dispatch.incarnation = incarnation
            _log.info("scheduler.started", extra={"incarnation": str(incarnation)})
            await self.wake()
            while await self._beat(incarnation):
                self._awake.set()
                self._split_awake.set()
                await asyncio.sleep(self._settings.heartbeat_s)
            # We were silent for too long, and our attempts were given to somebody else.
            _log.error("scheduler.fenced", extra={"incarnation": str(incarnation)})
        finally:
            # No attempt of this life may run on into the next one. (`close` ends a life in order.)
            if not self._closing:
                self._incarnation = self._dispatch.incarnation = None
                for flying in self._flight:
                    self._flight.kill(flying)

    async def _beat(self, incarnation: UUID) -> bool:
        """False when this life is over. While nobody can say so, as the database is away, what runs goes on."""
        try:
            return await self._reaper.beat(incarnation)
        except Exception as error:  # noqa: BLE001 - whatever it is: it ends no life, and the next beat may go better
            self._beat_trouble.tell(_log, "scheduler.beat_missed", error, known=is_away(error))
            return True

    async def _turn(self) -> None:
        """Write down what has ended, start what has become ready, as long as there is either."""
        while True:
            await self._awake.wait()
            self._awake.clear()
            while True:
                await self._pace.until_next(len(self._flight))
                self._turns += 1
                committed = await self._commits.turn()
                if committed.retry_in_s is not None:
                    self._timers.after(committed.retry_in_s + 0.01, self._reaper.requeue)
                if committed.closed:
                    self._tell_ends()
                if committed.grows:
                    self._split_awake.set()
                started: Sequence[Claimed] = ()
                may_start, backlog = self._incarnation is not None, self._backlog
                if backlog.next_held_s() == 0:
                    # While there is always something to do, the timer is never set.
                    await backlog.put_back_held()
                # Without Redis nobody tells what has been queued.
                if may_start and (backlog.dirty or backlog.waiting or backlog.redis_away or self._commits.finished):
                    started = await self._dispatch.turn()
                is_full = len(self._commits) >= self._settings.batch_max
                self._pace.started(0 if is_full else sum(one.sub_task_id in self._flight.attempts for one in started))
                if not started and not len(self._commits) and not (may_start and backlog.dirty):
                    break
            held_s = self._backlog.next_held_s()
            if self._held_timer is not None:
                self._held_timer.cancel()
            put_back = self._backlog.put_back_held
            self._held_timer = None if held_s is None else self._timers.after(held_s + 0.01, put_back)

    def _ended(self, flying: Flying, outcome: Outcome) -> None:
        self._pace.ended()
        lasted_s = outcome.finished_at - outcome.started_at
        self._dispatch.window.ended(flying.shape, flying.claimed.use, lasted_s=lasted_s)
        self._commits.add(flying, outcome)
        self._awake.set()

    def _tell_ends(self) -> None:
        if self._webhooks is not None:
            self._webhooks.wake()

    async def _split(self) -> None:
        while True:
            await self._split_awake.wait()
            self._split_awake.clear()
            if self._incarnation is not None:
                await self._planning.turn(self._incarnation)

    async def _listen(self) -> None:
        """Wake-ups from Redis."""
        async with Signals(self._redis).listen(WAKE) as listener:
            await self.wake()
            while True:
                reason = await listener.wait(LISTEN_S)
                if reason == TASKS:
                    self._split_awake.set()
                    # Or one was ended by somebody else.
                    self._tell_ends()
                elif reason is not None:
                    self._backlog.dirty = True
                    self._awake.set()

    async def _watch_nodes(self) -> None:
        while True:
            view = await self._look()
            if (view.nodes, view.types) != (self._view.nodes, self._view.types):
                await self.wake()
            self._view = view
            self._commits.nodes = nodes = (*view.nodes, *view.types)
            self._planning.judge.nodes = nodes
            self._dispatch.window.look(view.nodes, view.types, total=view.total, free=view.free)
            self._dispatch.note_hopeless()
            await asyncio.sleep(NODES_S)

    async def _watch_tools(self) -> None:
        while True:
            snapshot = await self._registry.changed(self._planning.judge.tools.version)
            self._planning.judge.tools = snapshot
            self._passing.news(snapshot)
            self._split_awake.set()
            self._awake.set()
