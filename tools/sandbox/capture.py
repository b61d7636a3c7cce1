"""The output of a child process: read as it comes, kept up to a size, told line by line."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import Callable
from typing import Final

READ_BYTES: Final = 65_536
MAX_LINE_CHARS: Final = 8_192
FLOOD_BYTES: Final = 64 * 1024 * 1024
"""Past this much output beyond what is kept, reading on would only burn the worker's CPU."""


class Kept:
    """The output of one stream, handed in piece by piece: kept up to a size, told line by line."""

    def __init__(self, *, keep_bytes: int, on_line: Callable[[str], None]) -> None:
        self._keep_bytes = keep_bytes
        self._on_line = on_line
        self._kept = bytearray()
        self._dropped_bytes = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    @property
    def truncated(self) -> bool:
        """Whether output was left out."""
        return self._dropped_bytes > 0

    @property
    def flooded(self) -> bool:
        """Whether the program prints more than anybody should read."""
        return self._dropped_bytes > FLOOD_BYTES

    def text(self) -> str:
        """What was kept, with U+FFFD for what isn't UTF-8."""
        # A character cut in two by our own limit isn't the program's mistake: leave its half out.
        return self._kept.decode("utf-8", "ignore" if self.truncated else "replace")

    def feed(self, data: bytes) -> None:
        """The next piece."""
        kept = data[: self._keep_bytes - len(self._kept)]
        self._dropped_bytes += len(data) - len(kept)
        if kept:
            self._kept += kept
            self._tell(self._decoder.decode(kept))

    def finish(self) -> None:
        """There is no more: tell the last line, even without its end."""
        self._tell(self._decoder.decode(b"", final=True), last=True)

    def _tell(self, text: str, *, last: bool = False) -> None:
        *lines, self._line = (self._line + text).split("\n")
        if (last and self._line) or len(self._line) > MAX_LINE_CHARS:
            lines.append(self._line)
            self._line = ""
        for line in lines:
            for start in range(0, max(len(line), 1), MAX_LINE_CHARS):
                self._on_line(line[start : start + MAX_LINE_CHARS])


class Capture(Kept):
    """One pipe, read through the running event loop.

    With ``handshake`` the first line is a sign of life, not output: ``ready`` is set when it came.
    """

    def __init__(self, fd: int, *, keep_bytes: int, on_line: Callable[[str], None], handshake: bool = False) -> None:
        super().__init__(keep_bytes=keep_bytes, on_line=on_line)
        self._fd = fd
        self._handshake = handshake
        self._loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.closed = asyncio.Event()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Stop reading; may be called twice."""
        if self.closed.is_set():
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self.finish()
        self.closed.set()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._handshake and not self.ready.is_set():
            _, newline, data = data.partition(b"\n")
            if newline:
                self.ready.set()
        self.feed(data)
