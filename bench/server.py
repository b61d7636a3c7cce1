"""A rayloom of the benchmark's own: `rayloom up` with a home that is thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from types import MappingProxyType, TracebackType

import httpx2

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 90


class Server:
    """Starts and stops the same rayloom again and again; its data stays between. Use ``with server.running()``.

    ``settings``: environment variables of it.
    """

    def __init__(self, settings: Mapping[str, str] = MappingProxyType({})) -> None:
        self._settings = settings
        # Short, because the embedded services put sockets below it, and a socket's path may have 107 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="rlbh", dir="/tmp"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def api_key(self) -> str:
        """The key that the first start made."""
        return (self.home / "api_key").read_text().strip()

    def running(self) -> Running:
        """A context in which it serves."""
        return Running(self)

    def start(self) -> subprocess.Popen[bytes]:
        """Start it and wait until it is ready. Raises RuntimeError with the end of its log."""
        own = {"RAYLOOM_HOME": str(self.home), "RAYLOOM_PORT": str(self._port), "RAYLOOM_DEMO": "0"}
        with (self.home / "bench-up.log").open("ab") as log:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("rayloom")), "up"],
                env={**os.environ, **self._settings, **own},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return process
            except httpx2.HTTPError:
                pass  # it is not listening yet
            Event().wait(0.3)
        self.stop(process)
        log_end = (self.home / "bench-up.log").read_text(errors="replace")[-2_000:]
        raise RuntimeError(f"`rayloom up` was not ready in {START_TIMEOUT_S} s:\n{log_end}")

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop it as Ctrl-C does."""
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def remove(self) -> None:
        """Throw its data away."""
        shutil.rmtree(self.home, ignore_errors=True)


class Running:
    """The time between a start and a stop."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> Server:
        self._process = self._server.start()
        return self._server

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(self._process)
