"""A server on the loopback that answers at once, when it is told to, or never, and sees when its peer goes away."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType


class Server:
    """Answers every request with ``answer`` (a body of JSON), or with silence when that is None.

    With ``held`` it answers only when `release` was called.
    """

    def __init__(self, answer: bytes | None = None, *, held: bool = False) -> None:
        self._answer = answer
        self._released = threading.Event()
        if not held:
            self._released.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.connected = threading.Event()
        self.closed = threading.Event()
        self.closed_at = 0.0
        self.asked_count = 0

    def __enter__(self) -> Server:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        # What wakes a thread that waits for the next one.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def release(self) -> None:
        """Answer those who wait, and all who come."""
        self._released.set()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._attend, args=[peer], daemon=True).start()

    def _attend(self, peer: socket.socket) -> None:
        with peer:
            self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        asked = b""
        try:
            while b"\r\n\r\n" not in asked:
                if not (more := peer.recv(65_536)):
                    return
                asked += more
            self.asked_count += 1
            self.connected.set()
            if self._answer is not None:
                self._released.wait()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(self._answer)}\r\n"
                peer.sendall(f"{head}Connection: close\r\n\r\n".encode() + self._answer)
                return
            while peer.recv(65_536):
                pass
        except ConnectionError:
            pass
        finally:
            self.closed_at = time.monotonic()
            self.closed.set()
