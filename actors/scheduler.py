"""The scheduler: one loop that writes down what has ended and starts what has become ready, and its helpers.

Everything it holds can be rebuilt: leases are rows, the queue is rows, timers are rows. Several may run at once on one
database; each claims for its own incarnation.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Sized
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from uuid_utils.compat import uuid7

from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.dispatch import Dispatch
from rayloom.actors.flight import Flight, Flying, Lane
from rayloom.actors.nodes import ClusterView
from rayloom.actors.reaper import Reaper
from rayloom.actors.settings import WorkerSettings
from rayloom.actors.splitting import Splitting
from rayloom.actors.trouble import Trouble
from rayloom.dag.errors import RayloomError
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import Health, ParserPort, RegistryPort, TokenPort
from rayloom.dag.resources import NodeShape
from rayloom.db import incarnations
from rayloom.db.engine import Line, is_unavailable, make_engine
from rayloom.db.queue import TASKS, WAKE, ReadyQueue, Signals, make_redis

_log = logging.getLogger(__name__)

AGAIN_S = 0.3
NODES_S = 2.0
CLOSE_S = 2.0
LISTEN_S = 5.0
BUSY = 4
BUSY_TURN_S = 0.01
"""With more than BUSY attempts in flight, turns begin at least so far apart."""


class Scheduler:
    """See the module. ``actor`` names the singleton that this is a life of."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        lane: Lane,
        registry: RegistryPort,
        tokens: TokenPort,
        parser: ParserPort,
        look: Callable[[], Awaitable[ClusterView]],
        actor: str,
    ) -> None:
        engine_settings, database = settings.engine, settings.database
        self._settings, self._actor, self._look, self._registry = engine_settings, actor, look, registry
        self._awake = asyncio.Event()
        self._split_awake = asyncio.Event()
        self._engine = make_engine(
            database.primary_dsn(),
            pool_size=database.pool_size,
            max_overflow=database.max_overflow,
            name="rayloom-scheduler",
        )
        self._redis = make_redis(settings.redis, name="rayloom-scheduler")
        self._signals = Signals(self._redis)
        self._backlog = Backlog(self._engine, ReadyQueue(self._redis))
        # Commits and claims take turns in one loop, so they share one line.
        self._line = Line(self._engine)
        self._commits = Commits(self._line, self._backlog, engine_settings)
        self._flight = Flight(lane, self._ended)
        self._dispatch = Dispatch(self._line, self._backlog, self._commits, self._flight, tokens, engine_settings)
        self._reaper = Reaper(self._engine, self._backlog, self._flight, self._commits, engine_settings)
        self._splitting = Splitting(self._engine, self._backlog, parser, on_room=self._split_soon)
        self._view = ClusterView()
        self._incarnation: UUID | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False
        self._turns = 0
        self._timers: set[asyncio.Task[None]] = set()
        self._held_timer: asyncio.TimerHandle | None = None
        self._timer_trouble, self._beat_trouble = Trouble(), Trouble()

    async def start(self) -> None:
        """Begin a life, take back what earlier lives left, and start the loops."""
        self._loops = [
            asyncio.get_running_loop().create_task(self._forever(loop), name=loop.__name__)
            for loop in (self._live, self._turn, self._listen, self._split, self._watch_nodes, self._watch_tools)
        ]

    async def close(self) -> None:
        """End this life in order: leases are given back at once, not after their time."""
        self._closing = True
        for loop in self._loops:
            loop.cancel()
        # The Redis client swallows a cancellation that reaches it while it connects: don't wait for that loop for ever.
        await asyncio.wait(self._loops, timeout=CLOSE_S)
        await self._splitting.close()
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
        for sub_task_id, attempt in attempts:
            self._flight.stop(sub_task_id, attempt)
        asyncio.get_running_loop().call_later(
            self._settings.stop_grace_s + 0.3, self._flight.kill_stubborn, self._settings.stop_grace_s + 0.2
        )

    async def nodes(self) -> Sequence[NodeShape]:
        """Every kind of node that the cluster has or could start."""
        return (*self._view.nodes, *self._view.types)

    async def health(self) -> Health:
        """Alive, with counts of what it holds."""
        return {
            "status": "ok" if self._incarnation is not None else "starting",
            "incarnation": str(self._incarnation),
            "in_flight": len(self._flight),
            "uncommitted": len(self._commits),
            "splitting": self._splitting.count,
            "waiting": sum(self._backlog.waiting.values()),
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
                trouble.tell(_log, "scheduler.again", error, known=_is_known(error), loop=loop.__name__)
            await asyncio.sleep(AGAIN_S)

    async def _live(self) -> None:
        """Begin an incarnation, then beat its heart until somebody ends it."""
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
            self._beat_trouble.tell(_log, "scheduler.beat_missed", error, known=_is_known(error))
            return True

    async def _turn(self) -> None:
        """Write down what has ended, start what has become ready, as long as there is either."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        while True:
            await self._awake.wait()
            self._awake.clear()
            while True:
                if len(self._flight) > BUSY:
                    # Many ends are about to come: one commit for several is worth more than a moment for the first.
                    await asyncio.sleep(began_at + BUSY_TURN_S - loop.time())
                began_at = loop.time()
                self._turns += 1
                committed = await self._commits.turn()
                if committed.retry_in_s is not None:
                    asyncio.get_running_loop().call_later(committed.retry_in_s + 0.01, self._requeue_soon)
                started: Sized = ()
                may_start, backlog = self._incarnation is not None, self._backlog
                if backlog.next_held_s() == 0:
                    # While there is always something to do, the timer is never set.
                    await backlog.put_back_held()
                # Without Redis nobody tells what has been queued.
                if may_start and (backlog.dirty or backlog.waiting or backlog.redis_away or self._commits.finished):
                    started = await self._dispatch.turn()
                if not started and not len(self._commits) and not (may_start and backlog.dirty):
                    break
            held_s = self._backlog.next_held_s()
            if self._held_timer is not None:
                self._held_timer.cancel()
            self._held_timer = None if held_s is None else loop.call_later(held_s + 0.01, self._held_soon)

    def _ended(self, flying: Flying, outcome: Outcome) -> None:
        lasted_s = outcome.finished_at - outcome.started_at
        self._dispatch.window.ended(flying.shape, flying.claimed.use, lasted_s=lasted_s)
        self._commits.add(flying, outcome)
        self._awake.set()

    def _split_soon(self) -> None:
        self._split_awake.set()

    def _requeue_soon(self) -> None:
        self._spawn(self._reaper.requeue())

    def _held_soon(self) -> None:
        self._spawn(self._backlog.put_back_held())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - the heartbeat does the same work again
                self._timer_trouble.tell(_log, "scheduler.timer_failed", error, known=_is_known(error))
            self._awake.set()

        task = asyncio.get_running_loop().create_task(run())
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _split(self) -> None:
        while True:
            await self._split_awake.wait()
            self._split_awake.clear()
            if self._incarnation is not None:
                await self._splitting.turn(self._incarnation)

    async def _listen(self) -> None:
        """Wake-ups from Redis."""
        async with self._signals.listen(WAKE) as listener:
            await self.wake()
            while True:
                reason = await listener.wait(LISTEN_S)
                if reason == TASKS:
                    self._split_awake.set()
                elif reason is not None:
                    self._backlog.dirty = True
                    self._awake.set()

    async def _watch_nodes(self) -> None:
        while True:
            view = await self._look()
            if (view.nodes, view.types) != (self._view.nodes, self._view.types):
                await self.wake()
            self._view = view
            self._splitting.nodes = (*view.nodes, *view.types)
            self._dispatch.window.look(view.nodes, view.types, total=view.total, free=view.free)
            self._dispatch.note_hopeless()
            await asyncio.sleep(NODES_S)

    async def _watch_tools(self) -> None:
        while True:
            snapshot = await self._registry.changed(self._splitting.tools.version)
            self._splitting.tools = snapshot
            self._dispatch.registry_version = snapshot.version
            self._split_awake.set()


def _is_known(error: Exception) -> bool:
    """Whether it says that something is away, and needs no traceback."""
    return isinstance(error, RayloomError | RedisError | OSError) or is_unavailable(error)
