"""The calls that run over a session, and what was said during each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

from mcp.client._transport import TransportStreams

from rayloom.dag.mcp import CallLine

LINES_MAX: Final = 1_000
"""So many lines of one call are kept; of a server that says more, the first ones."""

SLACK_S: Final = 30.0
"""A call may have begun so long after the server was heard last."""


@dataclass(frozen=True, slots=True)
class Ears:
    """What the way to a server tells its session: that it has ended, and a line of stderr.

    ``ended`` takes why we ended it; empty where it was not us.
    """

    ended: Callable[[str], None]
    said: Callable[[str], None]


Opener = Callable[[Ears], AbstractAsyncContextManager[TransportStreams]]
"""Opens a new way to the server."""


class RunningCall:
    """A call, and the lines that came with it so far."""

    def __init__(self) -> None:
        self.lines: list[CallLine] = []
        self.asked_at = asyncio.get_running_loop().time()
        self.task: asyncio.Task[Any] | None = None
        self.patience_s = 0.0
        """How long it may take; 0 as long as it is not made."""
        self._news = asyncio.Event()

    def say(self, line: CallLine) -> None:
        """Add a line."""
        if len(self.lines) < LINES_MAX:
            self.lines.append(line)
            self._news.set()

    async def after(self, count: int, within_s: float) -> Sequence[CallLine]:
        """The lines after the first ``count``, as soon as there are any; none if none come in time."""
        self.asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(within_s):
                while len(self.lines) <= count and (self.task is None or not self.task.done()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return ()
        return tuple(self.lines[count:])

    def cancel(self) -> None:
        """Stop it; whoever waits for its lines is let go."""
        if self.task is not None:
            self.task.cancel()
        self._news.set()

    def end(self) -> None:
        """It is over."""
        self._news.set()


class Calls:
    """The calls over one session, by their ids."""

    def __init__(self) -> None:
        self._running: dict[str, RunningCall] = {}
        self._heard_at = 0.0

    def __len__(self) -> int:
        return len(self._running)

    def begin(self, id_: str) -> RunningCall:
        """A call begins."""
        call = self._running[id_] = RunningCall()
        return call

    def end(self, id_: str) -> None:
        """It is over."""
        call = self._running.pop(id_, None)
        if call is not None:
            call.end()

    def get(self, id_: str) -> RunningCall | None:
        """A call that runs."""
        return self._running.get(id_)

    def heard(self) -> None:
        """The server has answered, or told something."""
        self._heard_at = asyncio.get_running_loop().time()

    def excuse_silence(self) -> bool:
        """Whether the server may be silent for its work on a call: not much longer than any of them may take."""
        patience_s = max((call.patience_s for call in self._running.values()), default=-SLACK_S)
        return asyncio.get_running_loop().time() - self._heard_at < patience_s + SLACK_S

    def only(self) -> RunningCall | None:
        """The call that runs, if it is the only one."""
        return next(iter(self._running.values())) if len(self._running) == 1 else None

    def forsaken(self, since: float) -> list[RunningCall]:
        """Those whose callers have not asked since then (the loop's clock): they died, and could not say so."""
        return [call for call in self._running.values() if call.asked_at < since]

    def cancel_all(self) -> None:
        """Stop them all."""
        for call in self._running.values():
            call.cancel()


async def any_of(*events: asyncio.Event) -> None:
    """Wait for the first of some events."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
