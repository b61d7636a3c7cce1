"""The process that runs attempts: one event loop in a thread of its own, kept from attempt to attempt.

The main thread belongs to Ray: it waits for the attempt, so that Ray can interrupt it, and it watches the clock, so that
a tool that blocks the loop is stopped too, by ending the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.attempt import run_attempt
from rayloom.actors.order import AttemptOrder
from rayloom.actors.reporter import AttemptReporter
from rayloom.actors.resolve import resolve
from rayloom.actors.settings import WorkerSettings
from rayloom.actors.singletons import RayRegistry
from rayloom.dag.errors import Refused, UserError
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.values import Json
from rayloom.db import attempts
from rayloom.db.engine import make_engine
from rayloom.db.files import TaskFiles
from rayloom.db.queue import Signals, make_redis
from rayloom.tools.tool import Tool

_log = logging.getLogger(__name__)

POLL_S = 0.1
"""How often the main thread looks whether Ray interrupts it: Ray's interrupt does not wake a waiting thread."""
OVERRUN_EXIT_CODE = 75


class Worker:
    """What attempts need of this process; made by the first attempt. See `attempt.Surroundings`."""

    def __init__(self, settings: WorkerSettings, *, worker_id: str, node_id: str) -> None:
        self.settings = settings
        self.worker_id = worker_id
        self.node_id = node_id
        self._loop = asyncio.new_event_loop()
        self._engine: AsyncEngine = make_engine(
            settings.database.worker_dsn(), pool_size=1, max_overflow=settings.database.worker_pool_size - 1,
            name="rayloom-worker",
        )  # fmt: skip
        self._signals = Signals(make_redis(settings.redis, name="rayloom-worker"))
        self._registry = RayRegistry(settings.engine)
        self._current: asyncio.Task[Outcome] | None = None
        self._snapshot = ToolSnapshot(version=-1, tools={})
        threading.Thread(target=self._loop.run_forever, name="rayloom-attempts", daemon=True).start()

    def run(self, order: AttemptOrder, *, ray_task_id: str) -> Outcome:
        """Run one attempt to its end, from the main thread."""
        started = time.monotonic()
        grace_s = self.settings.engine.stop_grace_s
        future = asyncio.run_coroutine_threadsafe(self._attempt(order), self._loop)
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = future.result(timeout=POLL_S)
            except TimeoutError:
                if time.monotonic() - started > order.timeout_s + self.settings.engine.timeout_grace_s:
                    self._die("attempt.overran", order)
            except KeyboardInterrupt:
                outcome = self._stop(future, order, grace_s)
        return replace(outcome, worker_id=self.worker_id, node_id=self.node_id, ray_task_id=ray_task_id)

    def _stop(self, future: concurrent.futures.Future[Outcome], order: AttemptOrder, grace_s: float) -> Outcome:
        """Ray asks the attempt to stop: let it clean up, but not for long."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        self._loop.call_soon_threadsafe(self._cancel)
        if not done.wait(grace_s):
            self._die("attempt.would_not_stop", order)
        return future.result()

    def _cancel(self) -> None:
        if self._current is not None:
            self._current.cancel()

    async def _attempt(self, order: AttemptOrder) -> Outcome:
        self._current = asyncio.current_task()
        try:
            return await run_attempt(order, self)
        finally:
            self._current = None

    def _die(self, why: str, order: AttemptOrder) -> None:
        # The loop is blocked by foreign code; nothing in this process can be trusted to go on.
        _log.error(why, extra={"task_id": order.task_id, "subtask": order.key, "attempt": order.attempt})
        os._exit(OVERRUN_EXIT_CODE)

    async def tool(self, name: str, registry_version: int) -> Tool:
        """The tool, as the registry knows it at this version or later."""
        if self._snapshot.version < registry_version:
            self._snapshot = await self._registry.snapshot()
        registered = self._snapshot.tools.get(name)
        if registered is None:
            raise UserError("TOOL_UNKNOWN", f"the tool {name} is no longer registered")
        if not registered.is_active:
            raise Refused("TOOL_INACTIVE", f"the tool {name} is switched off")
        return resolve(registered)

    async def outputs(self, task_id: str, keys: Sequence[str]) -> dict[str, Json]:
        """The outputs of completed subtasks of a task, by their ids in the plan."""
        return await attempts.outputs(self._engine, task_id, keys)

    def reporter(self, order: AttemptOrder) -> AttemptReporter:
        """A reporter of its own for one attempt."""
        return AttemptReporter(self._engine, self._signals, order, self.worker_id)

    def files(self, task_id: str) -> TaskFiles:
        """The workspace of a task."""
        return TaskFiles(self._engine, task_id)
