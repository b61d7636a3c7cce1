"""Keeps one server running: starts it, notices its death, starts it again.

A server is a child of the thread that started it, and is told by the kernel when that thread dies; so each keeper has
one thread that lives exactly as long as its server.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rayloom.cluster.embedded.identity import Identity, ServiceError, server_environment

Tell = Callable[[str], None]
"""Takes one line of news for the person at the terminal."""

_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_FIRST_STARTS = 4
_HEALTHY_AFTER_S = 30.0
_NEWS_EVERY_S = 10.0
_MAX_LOG_BYTES = 16 * 1024 * 1024


class Server(Protocol):
    """One kind of server."""

    name: str
    log: Path
    death_signal: int
    stop_signals: tuple[tuple[int, float], ...]
    """From the politest, each with the seconds that it is given."""

    def prepare(self, *, failures: int, stopping: threading.Event, tell: Tell) -> list[str]:
        """Clear the way for a start, after so many ``failures`` in a row; gives the command line.

        Raises ServiceError when a person must do something first.
        """

    def is_ready(self, pid: int) -> bool:
        """Whether it takes connections."""


def _privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Keeper:
    """The keeper of one server. Start once, stop once."""

    def __init__(self, server: Server, identity: Identity, tell: Tell) -> None:
        self._server = server
        self._identity = identity
        self._tell = tell
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._was_ready = False
        self._error: ServiceError | None = None
        self._log_offset = 0
        self._thread = threading.Thread(target=self._keep, name=f"keeper-{server.name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """The server's process, or None between two of them."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def error(self) -> ServiceError | None:
        """Why it was given up, before it was ever ready; None while there is hope."""
        return self._error

    def begin(self) -> None:
        """Start the server without waiting for it."""
        self._thread.start()

    def wait_ready(self) -> None:
        """Wait until the server takes connections, however long its recovery lasts. Raises ServiceError."""
        self._settled.wait()
        if not self._was_ready:
            raise self._error or ServiceError(f"{self._server.name} was stopped while it started")

    def stop(self) -> None:
        """Stop the server, first politely; it is gone when this returns."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if not self._thread.is_alive():
            return
        for number, patience_s in self._server.stop_signals:
            if process is not None:
                process.send_signal(number)
            self._thread.join(patience_s)
            if not self._thread.is_alive():
                return
        if process is not None:
            process.kill()
        self._thread.join()

    def _keep(self) -> None:
        try:
            self._keep_running()
        finally:
            self._settled.set()

    def _keep_running(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            fault: ServiceError | None = None
            lived_s = 0.0
            try:
                lived_s = self._run_once(failures)
            except ServiceError as error:
                fault = error
            except OSError as error:
                fault = ServiceError(f"{self._server.name} can't be started: {error}")
            if self._stopping.is_set():
                return
            failures = 0 if lived_s >= _HEALTHY_AFTER_S else failures + 1
            if self._was_ready:
                ended = f"{self._server.name} ended by itself, starting it again ({self._last_words()})"
                self._tell(str(fault) if fault else ended)
            elif fault or failures >= _FIRST_STARTS:
                self._error = fault or ServiceError(f"{self._server.name} does not start: {self._last_words()}")
                return
            self._stopping.wait(_PAUSES_S[min(max(failures - 1, 0), len(_PAUSES_S) - 1)])

    def _run_once(self, failures: int) -> float:
        """One life of the server. Gives the seconds for which it took connections."""
        command = self._server.prepare(failures=failures, stopping=self._stopping, tell=self._tell)
        command = self._identity.command(command, death_signal=self._server.death_signal)
        with self._lock:
            if self._stopping.is_set():
                return 0.0
            process = self._process = self._spawn(command)
        ready_at = self._wait_ready_or_dead(process)
        if ready_at is None:
            return 0.0
        if self._was_ready:
            self._tell(f"{self._server.name} is back")
        self._was_ready = True
        self._settled.set()
        process.wait()
        return time.monotonic() - ready_at

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = self._server.log
        if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with open(log, "ab", opener=_privately) as output:
            self._log_offset = output.tell()
            return subprocess.Popen(
                command,
                env=server_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for us: the servers go last.
                start_new_session=True,
            )

    def _wait_ready_or_dead(self, process: subprocess.Popen[bytes]) -> float | None:
        began_at = news_at = time.monotonic()
        while True:
            try:
                process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if self._server.is_ready(process.pid):
                    return now
                if now - news_at >= _NEWS_EVERY_S:
                    news_at = now
                    self._tell(f"{self._server.name} is still starting ({now - began_at:.0f} s)")
            else:
                return None

    def _last_words(self) -> str:
        try:
            with self._server.log.open("rb") as log:
                log.seek(self._log_offset)
                lines = log.read(_MAX_LOG_BYTES).decode(errors="replace").splitlines()
        except OSError:
            lines = []
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "Fatal", "launch:"))]
        said = (telling or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
        return f"{said.strip()[:300]}; see {self._server.log}"
