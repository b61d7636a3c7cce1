"""What a worker process reads and writes in the database, as its restricted role.

Apart from `worker`, as many attempts need none of it: a process that has just started should not spend half a second
of CPU on drivers before its first no-op.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import WorkerSettings
from rayloom.dag.log_line import LogLine
from rayloom.dag.states import Phase, SubtaskEvent
from rayloom.dag.values import Json
from rayloom.db import attempts
from rayloom.db.engine import make_engine
from rayloom.db.files import TaskFiles
from rayloom.db.log_lines import append
from rayloom.db.queue import REDIS_AWAY, Signals, make_redis
from rayloom.db.refusals import tell_refusal

_log = logging.getLogger(__name__)


class WorkerRecords:
    """The connections of one worker process, and what goes over them."""

    def __init__(self, settings: WorkerSettings, *, worker_id: str) -> None:
        self._worker_id = worker_id
        self._engine = make_engine(
            settings.database.worker_dsn(),
            pool_size=1,
            max_overflow=settings.database.worker_pool_size - 1,
            name="rayloom-worker",
        )
        self._redis = make_redis(settings.redis, name="rayloom-worker")
        self._signals = Signals(self._redis)

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()
        await self._engine.dispose()

    async def outputs(self, task_id: str, keys: Sequence[str]) -> dict[str, Json]:
        """The outputs of completed subtasks of a task, by their ids in the plan."""
        return await attempts.outputs(self._engine, task_id, keys)

    async def begin(self, order: AttemptOrder) -> bool:
        """The attempt has begun. False: its lease is gone."""
        begun = await attempts.begin(self._engine, order.sub_task_id, order.attempt, self._worker_id)
        if not begun:
            # Where it is instead is not for this role to know.
            tell_refusal(
                SubtaskEvent.STARTED, source=None, task_id=order.task_id, subtask=order.key, attempt=order.attempt
            )
        return begun

    async def tell_phase(self, order: AttemptOrder, phase: Phase) -> bool:
        """The attempt has come to a phase. False: it is no longer current."""
        return await attempts.report_phase(self._engine, order.sub_task_id, order.attempt, phase, self._worker_id)

    async def append(self, lines: Sequence[LogLine]) -> None:
        """Write lines of the log."""
        await append(self._engine, lines)

    async def signal(self, task_id: str) -> None:
        """Something happened to a task. Best effort: who follows it looks now and then anyway."""
        try:
            await self._signals.tell([task_id])
        except REDIS_AWAY:
            _log.info("attempt.signal_lost", extra={"task_id": task_id})

    def files(self, task_id: str) -> TaskFiles:
        """The workspace of a task."""
        return TaskFiles(self._engine, task_id)
