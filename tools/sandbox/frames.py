"""The frames that a container's warden speaks in, read from its stream; see `warden`."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Final

from rayloom.tools.sandbox.capture import Kept
from rayloom.tools.sandbox.engine import READ_BYTES, Demux

MAX_FRAME_BYTES: Final = 1024 * 1024


class Frames:
    """What a warden says through an attached stream. What is no frame ends it: ``broken`` is set."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._demux = Demux()
        self._data = bytearray()
        self.broken = False
        self.complaint = Kept(keep_bytes=4_096, on_line=lambda _line: None)

    async def read(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """The frames that come, as (letter, content), until there are no more.

        It may be given up while it waits, and another one goes on where it was: nothing is lost.
        """
        while not self.broken:
            # A stream that always has something to say must not keep the loop from everything else.
            await asyncio.sleep(0)
            try:
                data = self._stream.recv(READ_BYTES)
            except BlockingIOError:
                await self._readable()
                continue
            except OSError:
                return
            if not data:
                return
            for stream, piece in self._demux.feed(data):
                for frame in self._feed(stream, piece):
                    yield frame

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._stream, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._stream)

    def _feed(self, stream: int, data: bytes) -> list[tuple[bytes, bytes]]:
        if stream != 1:
            self.complaint.feed(data)
            return []
        self._data += data
        found = []
        while len(self._data) >= 5 and not self.broken:
            (length,) = struct.unpack_from(">I", self._data, 1)
            if length > MAX_FRAME_BYTES:
                self.broken = True
            elif len(self._data) < 5 + length:
                break
            else:
                found.append((bytes(self._data[:1]), bytes(self._data[5 : 5 + length])))
                del self._data[: 5 + length]
        return found
