"""Work that is begun once its time has come, beside the loops of an actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from rayloom.actors.trouble import Trouble, is_away

_log = logging.getLogger(__name__)


class Timers:
    """Runs work in tasks of its own, in the loop of whoever calls; ``then`` is called after each."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._running: set[asyncio.Task[None]] = set()
        self._trouble = Trouble()
        self._closed = False

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin the work now. What it raises is told in the log: somebody else does the same work again.

        Once closed, nothing begins any more.
        """
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._run(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def after(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.TimerHandle:
        """Begin it in so many seconds, unless the handle is cancelled."""
        return asyncio.get_running_loop().call_later(seconds, self.begin, work)

    async def close(self, *, within_s: float) -> None:
        """Stop what runs, and wait so long until it has ended: what it worked with may be closed then."""
        self._closed = True
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=within_s)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the heartbeat does the same work again
            self._trouble.tell(_log, "scheduler.timer_failed", error, known=is_away(error))
        self._then()
