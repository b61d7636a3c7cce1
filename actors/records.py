"""What a worker process reads and writes in the database, as its restricted role.

Apart from `worker`, as many attempts need none of it: a process that has just started should not spend half a second
of CPU on drivers before its first no-op.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import WorkerSettings
from rayloom.actors.shared_calls import SharedCalls
from rayloom.dag.log_line import LogLine
from rayloom.dag.references import Outputs
from rayloom.dag.states import Phase, SubtaskEvent
from rayloom.db import attempts
from rayloom.db.blobs import Blob, BlobStore
from rayloom.db.engine import make_engine
from rayloom.db.files import TaskFiles
from rayloom.db.log_lines import append
from rayloom.db.outputs import outputs
from rayloom.db.queue import REDIS_AWAY, Signals, make_redis
from rayloom.db.refusals import tell_refusal
from rayloom.db.result_cache import ResultCache
from rayloom.db.s3 import in_time

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
        self._blobs = BlobStore(self._engine, self._redis, settings.blobs)
        self._signals = Signals(self._redis)
        ttl_s = settings.engine.cache_ttl_s
        self._shared = SharedCalls(ResultCache(self._redis), ttl_s=ttl_s) if ttl_s else None

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()
        await self._engine.dispose()

    async def outputs(self, task_id: str, keys: Sequence[str], *, within_s: float) -> Outputs:
        """What subtasks of a task that are done have given, by their ids in the plan."""
        return await outputs(self._engine, self._blobs, task_id, keys, within_s=within_s)

    async def content(self, sha256: str, *, within_s: float) -> bytes:
        """What the blob store has under this name."""
        async with in_time(within_s):
            return await self._blobs.get(sha256)

    async def contents(self, sizes: Mapping[str, int]) -> Mapping[str, bytes]:
        """What the blob store has under these names."""
        blobs = [Blob(sha256=sha256, size=size) for sha256, size in sizes.items()]
        return {sha256: data async for sha256, data in self._blobs.get_all(blobs)}

    async def keep(self, data: bytes) -> str:
        """Put something into the blob store; gives its name there."""
        return (await self._blobs.put(data)).sha256

    async def begin(self, order: AttemptOrder, ray_task_id: str) -> bool:
        """The attempt has begun. False: its lease is gone."""
        begun = await attempts.begin(self._engine, order.sub_task_id, order.attempt, self._worker_id, ray_task_id)
        if not begun:
            # Where it is instead is not for this role to know.
            tell_refusal(
                SubtaskEvent.STARTED, source=None, task_id=order.task_id, subtask=order.key, attempt=order.attempt
            )
        return begun

    async def tell_phase(self, order: AttemptOrder, phase: Phase, ray_task_id: str) -> bool:
        """The attempt has come to a phase. False: it is no longer current."""
        return await attempts.report_phase(
            self._engine, order.sub_task_id, order.attempt, phase, self._worker_id, ray_task_id
        )

    async def append(self, lines: Sequence[LogLine]) -> None:
        """Write lines of the log."""
        await append(self._engine, lines)

    async def signal(self, task_id: str) -> None:
        """Something happened to a task. Best effort: who follows it looks now and then anyway."""
        try:
            await self._signals.tell([task_id])
        except REDIS_AWAY:
            _log.info("attempt.signal_lost", extra={"task_id": task_id})

    def shared_calls(self) -> SharedCalls | None:
        """The results that are kept for equal calls; None where the settings say so."""
        return self._shared

    def files(self, task_id: str) -> TaskFiles:
        """The workspace of a task."""
        return TaskFiles(self._engine, self._blobs, task_id)
