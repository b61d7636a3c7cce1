"""The memory of a confined server: capped by a control group where we may make one, else looked at now and then."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.cgroup import ControlGroup
from rayloom.tools.settings import SandboxLimits

LOOK_MIN_S: Final = 0.025
LOOK_MAX_S: Final = 1.0
FILL_BYTES_PER_S: Final = 4 * 1024**3
"""How fast memory can be filled: so long as there is room for more, nobody has to look."""


class MemoryWatch:
    """Watches a process with all that it starts. ``memory_mb``: what they may hold together; ``pids``: how many."""

    def __init__(self, pid: int, *, memory_mb: int, pids: int) -> None:
        self._pid, self._limit_mb = pid, memory_mb
        self._is_over = False
        # One more: bwrap itself, outside.
        self._group = ControlGroup.create(SandboxLimits(memory_mb=memory_mb, pids=pids + 1))
        self._inside: set[int] = set()

    async def over(self) -> None:
        """Wait until they hold more."""
        loop = asyncio.get_running_loop()
        while True:
            begun_at = loop.time()
            # With many large processes the kernel takes seconds to tell what they hold: nobody else waits for that,
            # and it is not asked all the time.
            room = await asyncio.to_thread(self._room)
            if room < 0:
                self._is_over = True
                return
            pause_s = min(max(room / FILL_BYTES_PER_S, LOOK_MIN_S), LOOK_MAX_S)
            await asyncio.sleep(max(pause_s, loop.time() - begun_at))

    def reason(self) -> str:
        """Why it ended, where that is for its memory; else empty."""
        # The kernel may have been faster than we looked.
        if not self._is_over and (self._group is None or not self._group.oom_kills()):
            return ""
        return f"it held more than {self._limit_mb:,} MiB of memory, and was ended (RAYLOOM_MCP_MEMORY_MB)"

    async def close(self) -> None:
        """Let go of the group, when all that was in it has ended."""
        if self._group is not None:
            await self._group.remove()

    def _room(self) -> int:
        """How many bytes more they may hold."""
        found = processes.tree(self._pid)
        self._take(found)
        if self._group is not None and self._group.oom_kills():
            return -1
        limit = self._limit_mb * processes.MIB
        return limit - processes.memory_bytes(found, enough=limit)

    def _take(self, found: list[int]) -> None:
        """Put into the group what is not in it yet; what one that is inside starts is inside as well."""
        if self._group is None:
            return
        for pid in set(found) - self._inside:
            # It may be gone already. Where we may not move it, what is looked at is the limit.
            with suppress(OSError):
                self._group.add(pid)
        self._inside = set(found)
