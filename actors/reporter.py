"""An attempt's log and phases, told to the database in batches, and only once the attempt lasts long enough."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from rayloom.actors.order import AttemptOrder
from rayloom.actors.trouble import Trouble
from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.output import clean_text, sanitise
from rayloom.dag.states import Phase
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.ports import Level, Stream

_log = logging.getLogger(__name__)

FIRST_REPORT_S = 0.25
"""An attempt that ends sooner is told once, with its outcome: a phase nobody could have seen costs no write."""
FLUSH_S = 0.1
RETRY_S = 1.0
CLOSE_S = 5.0
BATCH_LINES = 500
MAX_LINES = 100_000
"""Beyond this an attempt's further lines are counted, not kept: endless output must not fill the database."""

TEXT_CHARS = 1024 * 1024
"""Of its lines an attempt's row gets the first so many characters, whatever its settings allow."""


class Records(Protocol):
    """Where a reporter writes; see `records.WorkerRecords`."""

    async def begin(self, order: AttemptOrder, ray_task_id: str) -> bool:
        """The attempt has begun. False: its lease is gone."""

    async def tell_phase(self, order: AttemptOrder, phase: Phase, ray_task_id: str) -> bool:
        """The attempt has come to a phase. False: it is no longer current."""

    async def append(self, lines: Sequence[LogLine]) -> None:
        """Write lines of the log."""

    async def signal(self, task_id: str) -> None:
        """Something happened to a task."""


class AttemptReporter:
    """Buffers the lines of one attempt and tells its phase. Lives in the event loop of the worker process."""

    def __init__(self, records: Callable[[], Records], order: AttemptOrder, ray_task_id: str) -> None:
        self._records, self._order, self._ray_task_id = records, order, ray_task_id
        self._lines: list[LogLine] = []
        self._kept = 0
        self._dropped = 0
        self._text: list[str] = []
        self._text_chars = 0
        self._phase: Phase | None = None
        self._told_phase: Phase | None = None
        self._begun = order.running
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(FIRST_REPORT_S, self._start)
        self._closing = asyncio.Event()
        """Set: the reporter begins no further round."""

    def line(
        self,
        message: str,
        *,
        stream: Stream = "tool",
        level: Level = "INFO",
        fields: Mapping[str, Json] | None = None,
    ) -> None:
        """Append one line; never raises and never blocks."""
        if self._kept >= MAX_LINES:
            self._dropped += 1
            return
        self._kept += 1
        order, at = self._order, datetime.now(UTC)
        text = f"{at.isoformat(timespec='milliseconds')} {level} {stream}: {message}"
        if self._text_chars <= TEXT_CHARS:
            self._text.append(text[:TEXT_CHARS])
        self._text_chars += len(text) + 1
        self._lines.append(
            LogLine(
                at=at,
                task_id=order.task_id,
                subtask=order.key,
                attempt=order.attempt,
                stream=stream,
                level=level,
                message=message,
                fields=_clean(fields),
            )
        )
        if len(self._lines) >= BATCH_LINES and self._task is None:
            self._start()

    def phase(self, phase: Phase) -> None:
        """The attempt has come to this phase."""
        self._phase = phase

    def text(self, limit: int) -> str:
        """All lines so far as text, cut after ``limit`` characters."""
        if not self._text:
            return ""
        limit = min(limit, TEXT_CHARS)
        text, more = "\n".join(self._text), self._text_chars - 1 - limit
        return clean_text(text if more <= 0 else text[:limit] + f"\n… {more} more characters")

    async def close(self) -> None:
        """Write down what is still buffered. Raises TimeoutError when that takes too long, and what records raise."""
        self._closing.set()
        self._timer.cancel()
        if self._task is not None or self._lines or self._dropped:
            async with asyncio.timeout(CLOSE_S):
                await self._write_the_rest()

    async def _write_the_rest(self) -> None:
        if self._task is not None:
            # Not cancelled: in the middle of a batch nothing would say whether the batch was committed.
            try:
                await asyncio.wait([self._task])
            finally:
                self._task.cancel()
        if self._dropped:
            dropped, self._dropped, self._kept = self._dropped, 0, 0
            self.line(f"{dropped} more lines were dropped", stream="system", level="WARNING")
        if self._lines:
            await self._flush()

    def _start(self) -> None:
        if self._task is None and not self._closing.is_set():
            self._timer.cancel()
            self._task = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        trouble = Trouble()
        while not self._closing.is_set():
            pause_s = FLUSH_S
            try:
                await self._tell_phase()
                if self._lines:
                    await self._flush()
            except Exception as error:  # noqa: BLE001 - the database may be away; the attempt goes on meanwhile
                if trouble.is_news(error):
                    _log.warning("attempt.report_failed: %s", error, exc_info=not isinstance(error, Transient))
                pause_s = RETRY_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)

    async def _tell_phase(self) -> None:
        phase, order = self._phase, self._order
        if not self._begun:
            # False means that the lease is gone; the scheduler is stopping this attempt already.
            await self._records().begin(order, self._ray_task_id)
            self._begun = True
        if phase is not None and phase is not self._told_phase:
            await self._records().tell_phase(order, phase, self._ray_task_id)
            self._told_phase = phase
            await self._records().signal(order.task_id)

    async def _flush(self) -> None:
        batch, self._lines = self._lines[:BATCH_LINES], self._lines[BATCH_LINES:]
        try:
            await self._records().append(batch)
        except BaseException:
            # The lines are still to be written. When the connection ended at the commit, some may be there twice.
            self._lines = batch + self._lines
            raise
        if self._lines:
            await self._flush()
        else:
            await self._records().signal(self._order.task_id)


def _clean(fields: Mapping[str, Json] | None) -> JsonObject:
    if not fields:
        return {}
    try:
        clean = sanitise(dict(fields))
    except RayloomError as error:
        # A line must never break the attempt that writes it.
        return {"unfit": error.message}
    return clean if isinstance(clean, dict) else {}
