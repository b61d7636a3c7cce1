"""The ready queue and the wake-ups in Redis: hints, never the truth.

One sorted set a resource shape holds the subtasks that are QUEUED (``<subtask id>:<user id>`` by score, lower first),
so that a shape that has no room never blocks another. Whatever is lost here is found again by the scheduler's sweep
of PostgreSQL; whatever is here twice, or too long, is refused by the guarded claim.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.connection import BlockingConnectionPool
from redis.exceptions import RedisError

from rayloom.db import faults
from rayloom.db.faulty import make_faulty
from rayloom.db.settings import RedisSettings

PREFIX = "rayloom:"
SHAPES = PREFIX + "shapes"
WAKE = PREFIX + "wake"
READY = "ready"
TASKS = "tasks"
"""What a wake-up says: that subtasks are queued, or that there are tasks to split."""
READY_TTL_S = 7 * 86_400
REDIS_AWAY: tuple[type[BaseException], ...] = (RedisError, OSError, TimeoutError)

# KEYS: the set of shapes. ARGV: prefix, then (shape, room) pairs. Pops the best of every shape that has room and
# forgets shapes that have run empty; answers what it popped, and how many wait in every shape. One round trip.
POP = """
local popped, waiting = {}, {}
for i = 2, #ARGV, 2 do
  local got = redis.call('ZPOPMIN', ARGV[1] .. ARGV[i], tonumber(ARGV[i + 1]))
  for j = 1, #got, 2 do
    popped[#popped + 1] = ARGV[i]
    popped[#popped + 1] = got[j]
    popped[#popped + 1] = got[j + 1]
  end
end
for _, shape in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local count = redis.call('ZCARD', ARGV[1] .. shape)
  if count == 0 then
    redis.call('SREM', KEYS[1], shape)
  else
    waiting[#waiting + 1] = shape
    waiting[#waiting + 1] = count
  end
end
return {popped, waiting}
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """A subtask that is QUEUED, as the queue knows it."""

    sub_task_id: str
    user_id: str
    shape: str
    score: float


@dataclass(frozen=True, slots=True)
class Popped:
    """What was taken, best first over all shapes, and how many still wait in each shape."""

    items: tuple[Queued, ...]
    waiting: dict[str, int]


def make_redis(settings: RedisSettings, *, name: str) -> Redis:
    """A client for this process and event loop."""
    pool = BlockingConnectionPool.from_url(
        settings.dsn(),
        max_connections=settings.pool_size,
        timeout=5,
        client_name=name,
        decode_responses=True,
        socket_connect_timeout=2,
        socket_timeout=30,
        health_check_interval=15,
    )
    if faults.injector is not None:
        make_faulty(pool, faults.injector)
    return Redis.from_pool(pool)


class ReadyQueue:
    """What is QUEUED, by shape and score. Every method raises one of ``REDIS_AWAY`` when Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pop = redis.register_script(POP)

    async def push(self, items: Iterable[Queued], *, wake: bool = True, tasks: Iterable[str] = ()) -> None:
        """Add subtasks, and tell who follows ``tasks``. ``wake``: the scheduler too, unless it is the one that adds."""
        by_shape: dict[str, dict[str, float]] = {}
        for item in items:
            by_shape.setdefault(item.shape, {})[f"{item.sub_task_id}:{item.user_id}"] = item.score
        channels = [Signals.task_channel(task) for task in tasks]
        if not by_shape and not channels:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for shape, members in by_shape.items():
                pipe.zadd(PREFIX + "ready:" + shape, dict(members))
                # An owner's last resort against keys that nothing owns: a live queue is touched far more often.
                pipe.expire(PREFIX + "ready:" + shape, READY_TTL_S)
            if by_shape:
                pipe.sadd(SHAPES, *by_shape)
                if wake:
                    pipe.publish(WAKE, READY)
            for channel in channels:
                pipe.publish(channel, "")
            await pipe.execute()

    async def pop(self, room: Mapping[str, int]) -> Popped:
        """Take the best of each shape, at most as many as it has room for."""
        arguments: list[str | int] = [PREFIX + "ready:"]
        for shape, count in room.items():
            if count > 0:
                arguments += [shape, count]
        flat, counts = await self._pop(keys=[SHAPES], args=arguments)
        items = []
        for shape, member, score in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
            sub_task_id, _, user_id = member.partition(":")
            items.append(Queued(sub_task_id, user_id, shape, float(score)))
        items.sort(key=lambda item: (item.score, item.sub_task_id))
        return Popped(tuple(items), dict(zip(counts[0::2], counts[1::2], strict=True)))

    async def waiting(self) -> dict[str, int]:
        """How many subtasks wait, by shape."""
        return (await self.pop({})).waiting


class Signals:
    """Wake-ups: that there is work for the scheduler, and that something happened to a task."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def wake(self, reason: str) -> None:
        """Wake the scheduler."""
        await self._redis.publish(WAKE, reason)

    async def tell(self, tasks: Sequence[str]) -> None:
        """Something happened to these tasks: whoever follows them should look."""
        if not tasks:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for task in tasks:
                pipe.publish(f"{PREFIX}task:{task}", "")
            await pipe.execute()

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Listener]:
        """Listen on ``WAKE`` or on a task's channel (``Signals.task_channel``)."""
        pubsub = self._redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(channel)
            yield Listener(pubsub)
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py has not typed it

    @staticmethod
    def task_channel(task_id: str) -> str:
        """The channel on which a task's changes are told."""
        return f"{PREFIX}task:{task_id}"


class Listener:
    """An open subscription."""

    def __init__(self, pubsub: object) -> None:
        self._pubsub = pubsub

    async def wait(self, timeout_s: float) -> str | None:
        """The next message; None when none came in time."""
        message = await self._pubsub.get_message(timeout=timeout_s)  # type: ignore[attr-defined]
        return None if message is None else str(message["data"])
