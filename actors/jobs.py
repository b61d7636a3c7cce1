"""Work on tasks that goes on beside the scheduler's turns: at most so much at once, each task once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any
from uuid import UUID

_log = logging.getLogger(__name__)

ENDS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""What a job lets through, whatever else it catches: it is ended from outside."""


class Jobs:
    """The jobs that run. They are rows; losing this object loses nothing.

    ``on_room`` is told whenever more may be started. Up to ``waiting_max`` that wait keep no other from being started.
    """

    def __init__(self, *, at_once: int, waiting_max: int, on_room: Callable[[], None]) -> None:
        self._at_once, self._waiting_max, self._on_room = at_once, waiting_max, on_room
        self._busy: dict[asyncio.Task[None], UUID] = {}
        self._settled: set[UUID] = set()
        self.waiting: set[UUID] = set()

    @property
    def room(self) -> int:
        """How many more may be started."""
        return self._at_once - len(self._busy) + min(len(self.waiting), self._waiting_max)

    @property
    def busy(self) -> tuple[UUID, ...]:
        """What they are about."""
        return tuple(self._busy.values())

    def start(self, task_id: UUID, work: Coroutine[Any, Any, None]) -> None:
        """Begin with a task."""
        job = asyncio.get_running_loop().create_task(work)
        self._busy[job] = task_id
        job.add_done_callback(self._done)

    async def pause(self, task_id: UUID, pause_s: float) -> None:
        """Have the job of a task wait."""
        self.waiting.add(task_id)
        self._on_room()
        try:
            await asyncio.sleep(pause_s)
        finally:
            self.waiting.discard(task_id)

    def settle(self, task_id: UUID) -> None:
        """The job of a task writes down what it came to, and is to see that through."""
        self._settled.add(task_id)

    def drop(self, task_ids: Collection[UUID]) -> None:
        """Stop those that are about these tasks, unless they have settled."""
        for job, task_id in self._busy.items():
            if task_id in task_ids and task_id not in self._settled:
                job.cancel()

    async def close(self) -> None:
        """Stop all of them, and wait until they have."""
        for job in self._busy:
            job.cancel()
        if self._busy:
            await asyncio.wait(self._busy)

    def _done(self, job: asyncio.Task[None]) -> None:
        task_id = self._busy.pop(job)
        self._settled.discard(task_id)
        if not job.cancelled() and (error := job.exception()) is not None:
            # It is not busy any more, so it is taken again.
            _log.warning("job.again", extra={"task_id": str(task_id), "error": str(error)})
        self._on_room()
