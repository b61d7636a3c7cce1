"""What is QUEUED, as the scheduler sees it: in Redis while Redis is there, else read from PostgreSQL."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from uuid import UUID

import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.bound import Bound
from rayloom.actors.halted import Halted
from rayloom.actors.parked import Parked
from rayloom.dag.resources import ResourceShape
from rayloom.db import leases
from rayloom.db.queue import REDIS_AWAY, Queued, ReadyQueue

_log = logging.getLogger(__name__)

SWEEP_ROWS = 5_000
PAGE_ROWS = 1_000
COUNT_SHARE = 0.05
"""Without Redis, counting what waits may take so much of the time."""
KNOWN_SHAPES = 1_024


@lru_cache(maxsize=KNOWN_SHAPES)
def _shape(key: str) -> ResourceShape:
    return ResourceShape.from_json(orjson.loads(key))


class Backlog:
    """The ready queue with its safety net. ``redis_away`` says that PostgreSQL stands in for Redis.

    ``on_queued`` is told when something has become QUEUED, by whom ever.
    """

    def __init__(self, engine: AsyncEngine, queue: ReadyQueue, *, on_queued: Callable[[], None] = lambda: None) -> None:
        self._engine, self._queue, self._calls = engine, queue, Bound()
        self._on_queued = on_queued
        self._held: list[tuple[float, str, Queued]] = []
        self.parked, self.halted = Parked(), Halted()
        self._sweep_after: tuple[float, UUID] | None = None
        self._count_again_at = 0.0
        self.waiting: dict[str, int] = {}
        self.redis_away = False
        self.dirty = True
        """Something may have been queued since the last look."""
        self.sweep_due = False
        """Redis has come back, and knows nothing of what is queued."""

    def shape(self, key: str) -> ResourceShape:
        """The resource shape that a key stands for: its JSON text."""
        return _shape(key)

    async def add(self, items: Sequence[Queued], *, tasks: Collection[str] = ()) -> None:
        """These have become QUEUED, and something happened to these tasks."""
        if items:
            self.dirty = True
        for item in items:
            # So that the next look takes them already: else it would only learn that there is something to take.
            self.waiting[item.shape] = self.waiting.get(item.shape, 0) + 1
        await self._push(items, tasks)
        if items:
            self._on_queued()

    async def put_back(self, items: Sequence[Queued]) -> None:
        """There is no room for these yet. No reason to look again."""
        await self._push(items, ())

    async def _push(self, items: Sequence[Queued], tasks: Collection[str]) -> None:
        if not items and not tasks:
            # Nobody would be asked, and so it would not be known whether Redis is there.
            return
        try:
            await self._calls.call(lambda: self._queue.push(items, wake=False, tasks=tasks))
            self._there()
        except REDIS_AWAY as error:
            self._away(error)

    def hold(self, item: Queued, seconds: float) -> None:
        """Something that is away holds this one back for so long.

        What a limit holds back is ``parked``, what a breaker does is ``halted``.
        """
        heapq.heappush(self._held, (time.monotonic() + seconds, item.sub_task_id, item))

    def is_held(self, sub_task_id: str) -> bool:
        """Whether something that is away holds this one back."""
        return any(item.sub_task_id == sub_task_id for _, _, item in self._held)

    async def put_back_held(self) -> None:
        """Queue again what was held back long enough: of what limits hold back, the best few of each user."""
        due = self.parked.let_out() + self.halted.let_out()
        while self._held and self._held[0][0] <= time.monotonic():
            due.append(heapq.heappop(self._held)[2])
        if due:
            await self.add(due)

    def next_held_s(self) -> float | None:
        """Seconds until the next held one is due."""
        times = [at for at in (self._held[0][0] if self._held else None, self.parked.next_at()) if at is not None]
        waits = [max(at - time.monotonic(), 0.0) for at in times]
        if (halted_s := self.halted.wait_s()) is not None:
            waits.append(halted_s)
        return min(waits, default=None)

    async def pop(self, room: Mapping[str, int]) -> tuple[Queued, ...]:
        """Take the best of each shape, at most as many as it has room for; best first."""
        self.dirty = False
        try:
            popped = await self._calls.call(lambda: self._queue.pop(room))
        except REDIS_AWAY as error:
            self._away(error)
            return await self._pop_from_database(room)
        self._there()
        self.waiting = popped.waiting
        return popped.items

    async def _pop_from_database(self, room: Mapping[str, int]) -> tuple[Queued, ...]:
        # PostgreSQL's claim decides; here we only look, so a second look may see the same rows again.
        await self._count()
        left = {shape: count for shape, count in room.items() if count > 0}
        taken: list[Queued] = []
        after: tuple[float, UUID] | None = None
        closed, halted = self.parked.closed(), self.halted.calls()
        # Only what has room is looked at: else a shape without any would hide what is queued behind it.
        while left:
            page = await leases.queued_page(
                self._engine, after=after, limit=PAGE_ROWS, shapes=list(left), but_of=closed, but_with=halted
            )
            for item in self._free(page):
                if left.get(item.shape, 0) > 0:
                    left[item.shape] -= 1
                    taken.append(item)
            if len(page) < PAGE_ROWS:
                break
            after = page[-1].score, UUID(page[-1].sub_task_id)
            left = {shape: count for shape, count in left.items() if count > 0}
        for item in taken:
            self.waiting[item.shape] = max(self.waiting.get(item.shape, 0) - 1, 0)
        return tuple(taken)

    async def _count(self) -> None:
        """Find out what waits, of every shape: that is also how a shape becomes known."""
        began_at = time.monotonic()
        if began_at >= self._count_again_at:
            self.waiting = await leases.queued_counts(self._engine)
            ended_at = time.monotonic()
            self._count_again_at = ended_at + (ended_at - began_at) / COUNT_SHARE

    async def sweep(self) -> None:
        """Tell Redis a bounded part of what is QUEUED, going on next time where this stops: it may have lost it."""
        after, self.sweep_due = self._sweep_after, False
        try:
            page = await leases.queued_page(self._engine, after=after, limit=SWEEP_ROWS)
        except BaseException:
            self.sweep_due = True
            raise
        if not self.sweep_due:
            last = page[-1] if len(page) == SWEEP_ROWS else None
            self._sweep_after = None if last is None else (last.score, UUID(last.sub_task_id))
        await self.add(self._free(page))

    def _free(self, items: Sequence[Queued]) -> list[Queued]:
        """Those of them that nothing holds back here."""
        held = {item.sub_task_id for _, _, item in self._held}
        places = (held, self.parked, self.halted)
        return [item for item in items if not any(item.sub_task_id in place for place in places)]

    def _there(self) -> None:
        if self.redis_away:
            # It was told nothing meanwhile, and may have lost the rest: begin with the most urgent, without delay.
            self._sweep_after, self.sweep_due = None, True
        self.redis_away = False

    def _away(self, error: BaseException) -> None:
        if not self.redis_away:
            _log.warning("redis.away", extra={"error": f"{type(error).__name__}: {error}"})
            # What was known of it is to be looked for in PostgreSQL: now, and then whenever the scheduler looks.
            self.dirty = True
            self._count_again_at = 0.0
        self.redis_away = True
