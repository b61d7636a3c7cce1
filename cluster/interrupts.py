"""The signals that ask `rayloom up` to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from types import FrameType

INTERRUPTED = 130
"""The exit code of who was stopped at once."""


class Interrupts:
    """SIGINT, SIGTERM and a closed terminal: the first asks to stop, the second ends the process, and its servers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        self._loop = loop
        self._stop = stop
        self._asked = False
        # The kernel may give a signal to any thread; Python calls the handler in this one, which may sleep in its loop.
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        loop.add_reader(self._woken, self._woken.recv, 4096)

    def install(self) -> None:
        """Take the signals, also from a library that has taken them since."""
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Not under `nohup`.
            signal.signal(signal.SIGHUP, self._on_signal)

    def release(self) -> None:
        """Give the signals back to Python."""
        signal.set_wakeup_fd(-1)
        self._loop.remove_reader(self._woken)
        self._woken.close()
        self._wakes.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            os._exit(INTERRUPTED)
        self._asked = True
        self._loop.call_soon_threadsafe(self._stop.set)
