"""Calls of a server that may be silent: each ends within its time, and a silent server is left alone for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

CALL_S = 2.0
PAUSE_S = 5.0
"""After a call that did not end none is made for so long: else whoever makes many would wait for each."""


class Bound:
    """Calls of one server."""

    def __init__(self) -> None:
        self._again_at = 0.0
        self._left: set[asyncio.Task[Any]] = set()

    async def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What it answers. Raises TimeoutError when it does not, or did not a moment ago."""
        if monotonic() < self._again_at:
            raise TimeoutError("it was silent a moment ago")
        # As a task of its own, since the Redis client may swallow a cancellation and wait on.
        task = asyncio.get_running_loop().create_task(work())
        try:
            done, _ = await asyncio.wait([task], timeout=CALL_S)
        except asyncio.CancelledError:
            self._leave(task)
            raise
        if not done:
            self._leave(task)
            self._again_at = monotonic() + PAUSE_S
            raise TimeoutError(f"no answer within {CALL_S:g} s")
        self._again_at = 0.0
        return task.result()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        # A client whose call is cancelled closes the connection: nobody reads an answer that was meant for another.
        task.cancel()
        self._left.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            # Told to nobody: who asked has gone on without it.
            task.exception()
