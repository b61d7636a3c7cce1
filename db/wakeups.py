"""Whoever follows a task is woken when something happens to it: one subscription a process, however many follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from redis.asyncio import Redis

from rayloom.db.queue import REDIS_AWAY, Signals

log = logging.getLogger(__name__)

RECONNECT_S = 1.0
CANCEL_AGAIN_S = 0.1
QUIET_POLL_S = 10.0
"""How often a follower looks by itself while wake-ups arrive: a net under a lost message."""
BLIND_POLL_S = 1.0
"""The same while Redis is away."""


class Follower:
    """One who waits for news of a task."""

    def __init__(self, wakeups: Wakeups) -> None:
        self._wakeups = wakeups
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There may be news."""
        self._news.set()

    async def wait(self, timeout_s: float) -> float:
        """Wait for news, at most ``timeout_s`` and no longer than is safe without looking; gives the seconds waited."""
        patience_s = min(timeout_s, QUIET_POLL_S if self._wakeups.connected else BLIND_POLL_S)
        started_at = monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(patience_s, 0.0)):
                await self._news.wait()
        self._news.clear()
        return monotonic() - started_at


class Wakeups:
    """The subscription, and who waits on it. ``start`` and ``stop`` belong to the event loop that uses it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._followers: dict[str, set[Follower]] = {}
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.create_task(self._listen(), name="wakeups")

    async def stop(self) -> None:
        """Stop listening; who still waits falls back to looking by itself."""
        if self._task is None:
            return
        # The Redis client swallows a cancellation that reaches it while it makes a connection: ask until it is heard.
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_AGAIN_S)
        self._task = None

    @contextmanager
    def follow(self, task_id: str) -> Iterator[Follower]:
        """Follow a task for the length of the block. News from before the block is not told: look first."""
        follower = Follower(self)
        self._followers.setdefault(task_id, set()).add(follower)
        try:
            yield follower
        finally:
            waiting = self._followers[task_id]
            waiting.discard(follower)
            if not waiting:
                del self._followers[task_id]

    async def _listen(self) -> None:
        while True:
            try:
                await self._receive()
            except REDIS_AWAY as error:
                log.warning("wakeups.lost", extra={"error": type(error).__name__})
                # Followers that sleep through a long quiet poll must begin to look often now.
                self._wake_all()
                await asyncio.sleep(RECONNECT_S)

    async def _receive(self) -> None:
        channel = Signals.task_channel("*")
        prefix = len(channel) - 1
        pubsub = self._redis.pubsub()
        try:
            await pubsub.psubscribe(channel)
            while True:
                message = await pubsub.get_message(timeout=15)
                if message is None:
                    await pubsub.ping()
                elif message["type"] == "psubscribe":
                    self.connected = True
                    # What was told before this moment was not heard.
                    self._wake_all()
                elif message["type"] == "pmessage":
                    for follower in self._followers.get(message["channel"][prefix:], ()):
                        follower.wake()
        finally:
            self.connected = False
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _wake_all(self) -> None:
        for followers in self._followers.values():
            for follower in followers:
                follower.wake()
