"""A Redis that is stopped, though its connections stand: PostgreSQL stands in for it, without a wait each time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from rayloom.actors import bound
from rayloom.actors.backlog import Backlog
from rayloom.cluster.embedded.binaries import RedisBinary
from rayloom.db.queue import REDIS_AWAY, Popped, Queued, ReadyQueue, make_redis
from rayloom.db.settings import RedisSettings
from tests.integration.db.spine import Spine
from tests.integration.ports import free_ports


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[int, str]]:
    """A Redis of this test's own: its process and URL."""
    (port,) = free_ports(1)
    command = [str(RedisBinary.find().path), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "."]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:  # noqa: ASYNC220
        url = f"redis://127.0.0.1:{port}/0"
        redis = make_redis(RedisSettings(url=SecretStr(url)), name="test")
        async with asyncio.timeout(120):
            while True:
                try:
                    await redis.ping()
                    break
                except REDIS_AWAY:
                    await asyncio.sleep(0.05)
        await redis.aclose()
        yield process.pid, url
        process.kill()


class CountedQueue(ReadyQueue):
    """Counts what Redis is asked for."""

    asked = 0

    async def push(self, items: Iterable[Queued], *, wake: bool = True, tasks: Iterable[str] = ()) -> None:
        """See `ReadyQueue`."""
        self.asked += 1
        await super().push(items, wake=wake, tasks=tasks)

    async def pop(self, room: Mapping[str, int]) -> Popped:
        """See `ReadyQueue`."""
        self.asked += 1
        return await super().pop(room)


async def test_a_stopped_redis_holds_nobody_up(
    spine: Spine, server: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long, so that no call of a server that lives is taken for one of a silent one, however busy the machine is.
    monkeypatch.setattr(bound, "CALL_S", 60.0)
    pid, url = server
    redis = make_redis(RedisSettings(url=SecretStr(url), pool_size=4), name="test")
    queue = CountedQueue(redis)
    backlog = Backlog(spine.engine, queue)
    made = await spine.submit({f"s{n}": [] for n in range(5)})

    def is_away() -> bool:
        return backlog.redis_away

    await backlog.sweep()
    (shape,) = {item.shape for item in await backlog.pop({})} or backlog.waiting
    assert not is_away()

    os.kill(pid, signal.SIGSTOP)
    asked_before, now = queue.asked, time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(bound, "CALL_S", 0.5)
        # Time stands still, so that the pause after the first call does not end.
        patched.setattr(bound, "monotonic", lambda: now)
        for n in range(20):
            await backlog.add([Queued("none", "nobody", shape, float(n))], tasks=[str(made.task_id)])
            assert is_away()
            taken = await backlog.pop({shape: 2})
            assert len(taken) == 2
    assert queue.asked == asked_before + 1, "one call waited, and no other"

    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(bound, "monotonic", lambda: time.monotonic() + bound.PAUSE_S)
    await backlog.sweep()
    assert not is_away()
    # What was asked for while it was silent is not taken for an answer to what is asked now.
    ids = set((await spine.ids(made.task_id)).values())
    for _ in range(8):
        popped = await backlog.pop({shape: 1})
        assert {item.sub_task_id for item in popped} <= ids | {"none"}
    assert backlog.waiting == {}
    await redis.aclose()
