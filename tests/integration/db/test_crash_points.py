"""A scheduler dies exactly before and after each of its commits and each of its publishes, one after the other.

Death is for real as far as anybody outside can tell: from the chosen point on nothing that it asks of PostgreSQL or
Redis leaves it any more, what it had begun is rolled back, and it closes nothing in order. Another life takes over, and
the whole history is held against the same rules as that of a chaos run.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import SecretStr

from rayloom.actors.order import AttemptOrder
from rayloom.actors.scheduler import Scheduler
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import RegistryPort
from rayloom.dag.resources import ResourceShape
from rayloom.dag.window import TRIAL
from rayloom.db import faults
from rayloom.db.faults import When
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings
from tests.chaos.checker import check, story
from tests.chaos.history import read_history
from tests.chaos.record import Accepted, Leftovers, Mark
from tests.fakes.inline_lane import InlineLane, succeeded
from tests.fakes.scripted_tokens import ScriptedTokens
from tests.integration.db.spine import Spine
from tests.integration.db.test_scheduler_loop import Parser, Registry, look_without_autoscaler, until

DIAMOND: Mapping[str, Sequence[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
# More than a node's worth of what has earned no lead.
WIDE: Mapping[str, Sequence[str]] = {**dict.fromkeys("bcefghijkl", ()), "d": [*"bcefghijkl"]}
# What changes something. Reads, heartbeats and the listening connection are no crash points: dying there is dying
# between two of these.
WRITES = (
    "claim_subtasks", "complete_attempts", "recover_leases", "requeue_due", "release_leases", "unclaim_subtasks",
    "begin_attempt", "COMMIT", "ZADD", "EVALSHA", "PUBLISH",
)  # fmt: skip

_inside = contextvars.ContextVar("inside", default=False)


class CrashAt:
    """An `Injector`: the process that is `_inside` dies at its passage number ``number``."""

    def __init__(self, number: int) -> None:
        self._number, self._count = number, 0
        self.died = asyncio.Event()
        self.where = ""

    async def strikes(self, seam: str, when: When, what: str = "") -> bool:
        if not _inside.get():
            return False
        if not self.died.is_set() and any(word in what for word in WRITES):
            self._count += 1
            if self._count == self._number:
                self.where = f"{when} {what[:60]!r}"
                self.died.set()
        if self.died.is_set():
            await asyncio.Event().wait()
        return False

    def strikes_now(self, seam: str, when: When) -> bool:
        return False


class Lane(InlineLane):
    """Marks what runs; the first attempt of ``b`` fails, so that there is a retry as well."""

    def __init__(self, marks: list[Mark]) -> None:
        super().__init__(self._run)
        self._marks = marks

    def _run(self, order: AttemptOrder) -> Outcome:
        self._marks.append(Mark(sub_task_id=order.sub_task_id, attempt=order.attempt, at=time.time()))
        if order.key == "b" and order.attempt == 1:
            error = ErrorInfo(code="BROKEN", error_class="transient", message="it broke", retryable=True)
            return Outcome(verdict="failed", error=error, worker_id="inline", started_at=1.0, finished_at=1.0)
        return succeeded(order)


@pytest.fixture
def born(database: DatabaseSettings, servers: tuple[str, str]) -> Callable[[Lane], Scheduler]:
    """Lives of one scheduler."""

    def make(lane: Lane) -> Scheduler:
        settings = WorkerSettings(
            engine=EngineSettings(retry_initial_s=0.01, retry_max_s=0.02, heartbeat_s=0.2, sweep_s=0.4),
            database=database,
            redis=RedisSettings(url=SecretStr(servers[1]), pool_size=8),
            tools=ToolSettings(),
        )
        scheduler = Scheduler(
            settings, lane=lane, registry=cast(RegistryPort, Registry()), tokens=ScriptedTokens(), parser=Parser(),
            look=look_without_autoscaler, actor="one",
        )  # fmt: skip
        # Another task has earned a lead, which makes it claim more of this one than may start.
        for _ in range(2 * TRIAL):
            scheduler._dispatch.window.ended(ResourceShape(cpus=1.0), ("another task", "t"), lasted_s=0.0)
        return scheduler

    return make


async def _abandon(scheduler: Scheduler) -> None:
    """What is left of a process that died: nothing. Its connections break, without a word."""
    left = [*scheduler._loops, *scheduler._timers._running]
    for task in left:
        task.cancel()
    await asyncio.wait(left)
    await scheduler._line.drop()
    await scheduler._engine.dispose()
    await scheduler._redis.aclose()


async def _either(died: asyncio.Event, ended: Callable[[], Awaitable[bool]]) -> None:
    async def look() -> bool:
        return died.is_set() or await ended()

    await until(look)


async def _die_everywhere(
    spine: Spine,
    plan: Mapping[str, Sequence[str]],
    born: Callable[[], Scheduler],
    accepted: list[Accepted],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Run a plan again and again, until a life comes through to its end; answers where the others died."""
    points: list[str] = []
    loop = asyncio.get_running_loop()

    def inside() -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(_inside.set, True)
        return context

    while True:
        crash = CrashAt(len(points) + 1)
        monkeypatch.setattr(faults, "injector", crash)
        first = born()
        made = await spine.submit(plan)

        async def ended(task_id: UUID = made.task_id) -> bool:
            return (await spine.task(task_id))["finished_at"] is not None

        accepted.append(Accepted(task_id=str(made.task_id), title="a task", ends=frozenset({"COMPLETED"}), result="d"))
        await loop.create_task(first.start(), context=inside())
        await _either(crash.died, ended)
        monkeypatch.setattr(faults, "injector", None)
        if not crash.died.is_set():
            await first.close()
            return points
        points.append(crash.where)
        await _abandon(first)
        second = born()
        await second.start()
        try:
            await until(ended)
        finally:
            await second.close()


# Who dies closes nothing: what it leaves is collected here, before the next test could be blamed for it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")
@pytest.mark.timeout(600)
async def test_a_scheduler_dies_at_each_point_and_nothing_is_lost_or_doubled(
    spine: Spine, born: Callable[[Lane], Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted: list[Accepted] = []
    marks: list[Mark] = []
    points = {
        write: await _die_everywhere(spine, plan, lambda: born(Lane(marks)), accepted, monkeypatch)
        for plan, write in ((DIAMOND, "requeue_due"), (WIDE, "unclaim_subtasks"))
    }
    gc.collect()
    rows: dict[str, list[Any]] = {}
    loop = asyncio.get_running_loop()

    def ask(statement: str) -> list[Any]:
        return rows.setdefault(statement, asyncio.run_coroutine_threadsafe(spine.rows(statement), loop).result())

    history = await asyncio.to_thread(read_history, ask, accepted, marks, Leftovers(), marking="t")
    violations = [each for each in check(history) if each.rule != "submitted twice"]
    assert not violations, (violations[0], points, story(history, violations[0]))
    for write, places in points.items():
        assert len(places) > 20
        for each in ("claim_subtasks", "complete_attempts", write, "ZADD"):
            assert {when for when in ("before", "after") if any(p.startswith(when) and each in p for p in places)} == {
                "before", "after",
            }, (each, places)  # fmt: skip
