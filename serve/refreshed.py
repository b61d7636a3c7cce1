"""Make an answer once for all requests of the same moment, and give it again while it is fresh."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")


class Refreshed(Generic[T]):
    """Keep the answer of ``make`` for ``age_s`` seconds. Belongs to one event loop."""

    def __init__(self, make: Callable[[], Awaitable[T]], *, age_s: float) -> None:
        self._make, self._age_s = make, age_s
        self._task: asyncio.Task[T] | None = None
        self._made_at = 0.0

    async def get(self) -> T:
        """Return the kept answer, or wait for the next one. Raises the error of ``make``."""
        task = self._task
        if task is None or (task.done() and monotonic() - self._made_at > self._age_s):
            task = self._task = asyncio.get_running_loop().create_task(self._refresh())
        # A client that leaves must not take the answer from the others.
        return await asyncio.shield(task)

    async def _refresh(self) -> T:
        try:
            return await self._make()
        finally:
            self._made_at = monotonic()
