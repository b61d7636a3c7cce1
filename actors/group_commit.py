"""Many callers, one statement: what comes while one is under way goes into the next together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

MOST: int = 500


class GroupCommit(Generic[Item]):
    """Hands items to ``write`` in batches, in their order. Belongs to one event loop.

    ``lanes``: how many batches may be under way at a time, so that a slow one holds up few.
    """

    def __init__(self, write: Callable[[Sequence[Item]], Awaitable[None]], *, lanes: int = 1, most: int = MOST) -> None:
        self._write, self._lanes, self._most = write, lanes, most
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def put(self, item: Item) -> None:
        """Returns when it is written; raises what its batch raised. Whose caller has gone is written all the same."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if len(self._tasks) < self._lanes:
            task = asyncio.create_task(self._run())
            self._tasks.add(task)
        await done

    async def _run(self) -> None:
        try:
            await self._write_all()
        finally:
            # Before anybody else has a turn: who comes now must find out that nobody is there to write.
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)

    async def _write_all(self) -> None:
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
