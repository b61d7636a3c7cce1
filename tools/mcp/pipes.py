"""The pipes of a child process, read and written through the running event loop.

Not as transports of the loop: uvloop takes a descriptor for its own, so that one closed by anybody else is closed a
second time later, when its number may long be another's; and a pipe that has this number meanwhile can't be opened
(``FileExistsError``). Here whoever made a pipe closes it, once, after the loop has let go of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

READ_BYTES: Final = 65_536


class LineTooLong(ValueError):
    """A line is longer than anybody should read."""


class Pipe:
    """One end of a pipe; it owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._let_go: Callable[[int], Any] | None = None
        os.set_blocking(fd, False)

    def close(self) -> None:
        """Let the loop go of it, and close it; may be called twice. Whoever still waits for it has to be cancelled."""
        if self._fd >= 0:
            self._forget()
            os.close(self._fd)
            self._fd = -1

    async def _until(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        ready = asyncio.Event()
        add(self._fd, ready.set)
        self._let_go = remove
        try:
            await ready.wait()
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._let_go is not None:
            self._let_go(self._fd)
            self._let_go = None


class LineReader(Pipe):
    """Reads line by line, and no further ahead than one read. ``limit``: the longest line, in bytes."""

    def __init__(self, fd: int, *, limit: int) -> None:
        super().__init__(fd)
        self._limit = limit
        self._buffer = bytearray()
        self._is_over = False

    async def line(self) -> bytes:
        """The next line with its end; empty when there is no more.

        Raises LineTooLong; what was read of that line is thrown away.
        """
        searched = 0
        loop = asyncio.get_running_loop()
        while True:
            if (end := self._buffer.find(b"\n", searched)) >= 0:
                return self._taken(end + 1)
            searched = len(self._buffer)
            if searched > self._limit:
                self._buffer.clear()
                raise LineTooLong
            if self._is_over:
                return self._taken(searched)
            # Always by way of the loop: who never stops to write must not keep it from all others.
            await self._until(loop.add_reader, loop.remove_reader)
            with suppress(BlockingIOError):
                chunk = os.read(self._fd, READ_BYTES)
                self._is_over = not chunk
                self._buffer += chunk

    def _taken(self, size: int) -> bytes:
        line = bytes(self._buffer[:size])
        del self._buffer[:size]
        return line


class Writer(Pipe):
    """Writes as much as the other end takes, and waits for it to take the rest."""

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises BrokenPipeError when nobody reads it any more."""
        loop = asyncio.get_running_loop()
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                await self._until(loop.add_writer, loop.remove_writer)
