"""The process that runs attempts: one event loop, connections and tools, kept from attempt to attempt.

The loop runs in the main thread, for as long as an attempt does. Ray's request to stop comes there as SIGINT. A watch
in a thread of its own ends the process when an attempt overruns because foreign code blocks the loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from rayloom.actors.attempt import KEEP_S, run_attempt
from rayloom.actors.attempt_record import ModelCallTold
from rayloom.actors.callers import RayAccounts, RayRegistry
from rayloom.actors.mcp_caller import RayMcp
from rayloom.actors.mcp_tool import McpTool
from rayloom.actors.order import AttemptOrder
from rayloom.actors.reporter import AttemptReporter
from rayloom.actors.resolve import resolve
from rayloom.actors.sandbox_counts import count_run
from rayloom.actors.settings import WorkerSettings
from rayloom.dag.breaker import Call
from rayloom.dag.errors import RayloomError, Refused, UserError
from rayloom.dag.model import ModelPort, Payer
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.references import Outputs
from rayloom.db import faults
from rayloom.tools.models.clients import ModelClients
from rayloom.tools.ports import ContentsPort, FileEntry, FilesPort
from rayloom.tools.sandbox import measures
from rayloom.tools.tool import Tool

if TYPE_CHECKING:
    from rayloom.actors.records import WorkerRecords
    from rayloom.actors.shared_calls import SharedCalls

_log = logging.getLogger(__name__)

WATCH_S = 0.2
CLOSE_S = 5.0
OVERRUN_EXIT_CODE = 75


class Worker:
    """What attempts need of this process; made by the first attempt. See `attempt.Surroundings`."""

    def __init__(self, settings: WorkerSettings, *, worker_id: str, node_id: str) -> None:
        faults.install(settings.engine.faults, "worker")
        measures.listen(count_run)
        self.settings = settings
        self.worker_id = worker_id
        self.node_id = node_id
        self._loop = asyncio.SelectorEventLoop()
        asyncio.set_event_loop(self._loop)
        self._hears, self._told = socket.socketpair()
        for end in (self._hears, self._told):
            end.setblocking(False)
        self._loop.add_reader(self._hears, self._hear)
        self._heard = False
        self._listening = False
        self._interrupt = signal.getsignal(signal.SIGINT)
        self._kept_records: WorkerRecords | None = None
        self._registry = RayRegistry(settings.engine)
        self._mcp = RayMcp(settings.engine)
        self._accounts = RayAccounts(settings.engine)
        self._clients: ModelClients | None = None
        self._current: asyncio.Task[Outcome] | None = None
        self._order: AttemptOrder | None = None
        self._ray_task_id = ""
        self._snapshot = ToolSnapshot(version=-1, tools={})
        self._ends_at = math.inf
        """When the time of the attempt is over, by the monotonic clock."""
        self._die_at: float | None = None
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="rayloom-watch", daemon=True)
        self._watcher.start()

    def warm(self) -> None:
        """Do beforehand what the first attempt would have to wait for: drivers, and the list of tools."""
        self._records()
        self._loop.run_until_complete(self._renew_tools())

    def run(self, order: AttemptOrder, *, ray_task_id: str) -> Outcome:
        """Run one attempt to its end, from the main thread."""
        self._order, self._ray_task_id = order, ray_task_id
        if not self._listening:
            self._listen()
        if self._heard:
            self._forget_stops()
        self._ends_at = time.monotonic() + order.timeout_s
        self._die_at = self._ends_at + self.settings.engine.timeout_grace_s
        try:
            return self._loop.run_until_complete(self._attempt(order))
        finally:
            self._die_at = None

    def _listen(self) -> None:
        # Ray stops a task by a SIGINT that it only pretends to send: nothing interrupts a waiting loop, but Python
        # writes to this socket, which the loop reads. (asyncio's own signal handlers do the same at 0.2 ms each time.)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._listening = True

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """In an attempt, instead of a KeyboardInterrupt in the middle of whatever runs: `_hear` acts on the signal."""
        self._heard = True
        if self._die_at is None and callable(self._interrupt):
            self._interrupt(number, frame)

    def close(self) -> None:
        """Give up everything that it holds: another worker takes its place in this process."""
        self._over.set()
        self._watcher.join()
        if self._listening:
            signal.signal(signal.SIGINT, self._interrupt)
            signal.set_wakeup_fd(-1)
        try:
            self._loop.run_until_complete(self._let_go())
        except Exception:  # noqa: BLE001 - what can't be closed in order is dropped
            _log.warning("worker.not_closed", exc_info=True)
        self._loop.close()
        for end in (self._hears, self._told):
            end.close()

    async def _let_go(self) -> None:
        async with asyncio.timeout(CLOSE_S):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            if self._kept_records is not None:
                await self._kept_records.close()
            if self._clients is not None:
                await self._clients.aclose()

    async def _attempt(self, order: AttemptOrder) -> Outcome:
        self._current = asyncio.current_task()
        try:
            return await run_attempt(order, self, ray_task_id=self._ray_task_id)
        finally:
            self._current = None

    def _forget_stops(self) -> None:
        """A stop that came as the attempt before this one ended was not meant for this one."""
        self._heard = False
        with suppress(BlockingIOError):
            while self._hears.recv(4096):
                pass

    def _hear(self) -> None:
        if signal.SIGINT in self._hears.recv(4096):
            self._stop()

    def _stop(self) -> None:
        """Ray asks the attempt to stop: let it clean up, but not for long."""
        self._die_at = time.monotonic() + self.settings.engine.stop_grace_s
        if self._current is not None:
            self._current.cancel()

    def _watch(self) -> None:
        # As good as a plain pause: this thread must not depend on the one that it watches.
        while not self._over.wait(WATCH_S):
            die_at, order = self._die_at, self._order
            if die_at is not None and order is not None and time.monotonic() > die_at:
                # The loop is blocked by foreign code; nothing in this process can be trusted to go on.
                _log.error("attempt.blocked: %s:%s #%s", order.task_id, order.key, order.attempt)
                os._exit(OVERRUN_EXIT_CODE)

    async def tool(self, name: str, registry_version: int) -> Tool:
        """The tool, as the registry knows it at this version or later."""
        registered = self._snapshot.tools.get(name)
        # Whoever planned with it may have known a newer list than the scheduler when it named its version.
        if self._snapshot.version < registry_version or registered is None or not registered.is_active:
            await self._renew_tools()
            registered = self._snapshot.tools.get(name)
        if registered is None:
            raise UserError("TOOL_UNKNOWN", f"the tool {name} is no longer registered")
        if not registered.is_active:
            raise Refused("TOOL_INACTIVE", f"the tool {name} is switched off")
        return McpTool(registered, self._mcp) if registered.type == "MCP" else resolve(registered)

    async def tools(self, registry_version: int) -> ToolSnapshot:
        """Every tool, as the registry knows them now, breakers and all."""
        await self._renew_tools()
        return self._snapshot

    def models(self, order: AttemptOrder, on_call: Callable[[ModelCallTold], None]) -> ModelPort:
        """The models, on the account of whose attempt it is. In the time of the attempt that runs now."""
        from rayloom.tools.models.metered import MeteredModels
        from rayloom.tools.models.patience import Patience

        if self._clients is None:
            self._clients = ModelClients(self.settings.models)
        key_id = "" if order.thought is None else order.thought.key_id
        payer = Payer(
            user_id=order.user_id,
            key_id=key_id,
            task_id=order.task_id,
            sub_task_id=order.sub_task_id,
            attempt=order.attempt,
        )
        ends_at = self._ends_at
        patience = Patience(left_s=lambda: ends_at - time.monotonic())
        return MeteredModels(self._clients, self._accounts, payer, on_call=on_call, patience=patience)

    async def report(self, call: Call) -> None:
        """Tell the registry how a call went that a model made by itself. What it does not take is dropped."""
        try:
            await self._registry.report([call])
        except RayloomError as error:
            _log.warning("breaker.call_untold", extra={"error": error.message})

    async def _renew_tools(self) -> None:
        self._snapshot = await self._registry.snapshot()

    async def outputs(self, task_id: str, keys: Sequence[str], *, within_s: float) -> Outputs:
        """What subtasks of a task that are done have given, by their ids in the plan."""
        return await self._records().outputs(task_id, keys, within_s=within_s)

    async def content(self, sha256: str, *, within_s: float) -> bytes:
        """What the blob store has under this name."""
        return await self._records().content(sha256, within_s=within_s)

    async def keep(self, data: bytes) -> str:
        """Put something into the blob store; gives its name there."""
        if self._die_at is not None and not self._heard:
            # This has a time of its own, after that of the attempt.
            self._die_at = max(self._die_at, time.monotonic() + KEEP_S + self.settings.engine.timeout_grace_s)
        return await self._records().keep(data)

    async def begin(self, order: AttemptOrder) -> bool:
        """Say that the attempt has begun. False: its lease is gone."""
        return await self._records().begin(order, self._ray_task_id)

    def reporter(self, order: AttemptOrder) -> AttemptReporter:
        """A reporter of its own for one attempt."""
        return AttemptReporter(self._records, order, self._ray_task_id)

    def files(self, task_id: str) -> FilesPort:
        """The workspace of a task."""
        return _LazyFiles(self._records, task_id)

    def contents(self) -> ContentsPort:
        """What the blob store keeps."""
        return _LazyContents(self._records)

    def shared_calls(self) -> SharedCalls | None:
        """The results that are kept; None where none are."""
        return self._records().shared_calls()

    def _records(self) -> WorkerRecords:
        if self._kept_records is None:
            from rayloom.actors.records import WorkerRecords

            self._kept_records = WorkerRecords(self.settings, worker_id=self.worker_id)
        return self._kept_records


class _LazyFiles:
    """A task's workspace, for whoever uses it: `FilesPort`."""

    def __init__(self, records: Callable[[], WorkerRecords], task_id: str) -> None:
        self._records, self._task_id = records, task_id

    async def write(self, path: str, data: bytes, media_type: str) -> None:
        await self._records().files(self._task_id).write(path, data, media_type)

    async def read(self, path: str) -> bytes:
        return await self._records().files(self._task_id).read(path)

    async def list(self) -> Sequence[FileEntry]:
        return [FileEntry(**file) for file in await self._records().files(self._task_id).list()]


class _LazyContents:
    """What the blob store keeps, for whoever asks: `ContentsPort`."""

    def __init__(self, records: Callable[[], WorkerRecords]) -> None:
        self._records = records

    async def get(self, sizes: Mapping[str, int]) -> Mapping[str, bytes]:
        return await self._records().contents(sizes)
