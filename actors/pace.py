"""When the scheduler's next turn begins: one commit for many ends is worth more than a moment for the first."""

from __future__ import annotations

import asyncio
from contextlib import suppress

BUSY = 4
BUSY_TURN_S = 0.01
"""With more than BUSY attempts in flight, turns begin at least so far apart."""
BURST_S = 0.05
"""A turn that started more than BUSY attempts is followed by the next when half as many have ended, or after this."""


class Pace:
    """The time between two turns. Belongs to the event loop that it is used in."""

    def __init__(self, *, turn_s: float = BUSY_TURN_S, burst_s: float = BURST_S) -> None:
        self._turn_s, self._burst_s = turn_s, burst_s
        self._began_at = self._burst_until = 0.0
        self._missing = 0
        self._enough = asyncio.Event()

    async def until_next(self, in_flight: int) -> None:
        """Wait until a turn is worth while, with so many attempts in flight; it begins now."""
        loop = asyncio.get_running_loop()
        if self._missing > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._burst_until):
                    await self._enough.wait()
        if in_flight > BUSY:
            await asyncio.sleep(self._began_at + self._turn_s - loop.time())
        self._began_at = loop.time()

    def started(self, count: int) -> None:
        """The turn has started so many attempts. What quick ones free together is written down together."""
        self._missing = count // 2 if count > BUSY else 0
        self._burst_until = asyncio.get_running_loop().time() + self._burst_s
        self._enough.clear()

    def ended(self) -> None:
        """An attempt has ended."""
        self._missing -= 1
        if self._missing <= 0:
            self._enough.set()
