"""Many callers, one statement: what comes while one is under way goes into the next together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST: int = 500


class GroupCommit(Generic[Item]):
    """Hands items to ``write`` in batches, in their order and one batch at a time. Belongs to one event loop."""

    def __init__(self, write: Callable[[Sequence[Item]], Awaitable[None]], *, most: int = MOST) -> None:
        self._write, self._most = write, most
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> None:
        """Returns when it is written; raises what its batch raised. Whose caller has gone is written all the same."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                error: BaseException | None = None
                try:
                    await self._write([item for item, _ in batch])
                except Exception as raised:  # noqa: BLE001 - whatever it is, it belongs to those who wait
                    error = raised
                for _, done in batch:
                    if done.done():
                        continue
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(error)
        finally:
            self._task = None
