"""A way to a server that can fall silent: connections stand, and nothing comes through any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Way:
    """A TCP proxy. ``silent``: what it gets it keeps, without closing anything, and it answers nobody."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._talks: set[asyncio.Task[None]] = set()
        self._callers: set[asyncio.StreamWriter] = set()
        self.silent = False
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Way]:
        """Listen on a free ``port`` of the loopback."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for talk in self._talks:
                talk.cancel()
            await asyncio.gather(*self._talks, return_exceptions=True)

    async def say(self, data: bytes) -> None:
        """Say something to whoever is connected, in the server's place."""
        for caller in self._callers:
            caller.write(data)
            await caller.drain()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self._callers.add(writer)
        there, back = await asyncio.open_connection(self._host, self._port)
        try:
            with suppress(OSError, asyncio.CancelledError):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, back))
                    both.create_task(self._carry(there, writer))
        finally:
            back.close()
            writer.close()
            self._callers.discard(writer)
            self._talks.discard(task)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            if not self.silent:
                sink.write(data)
                await sink.drain()
        sink.close()
