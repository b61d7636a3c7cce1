"""The embedded Redis: append-only file synced every second, password, loopback only.

Nothing in it is the truth: data that it can't read any more are set aside, and it starts empty.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path
from urllib.parse import quote

from rayloom.cluster.embedded.binaries import RedisBinary
from rayloom.cluster.embedded.identity import Identity, ServiceError
from rayloom.cluster.embedded.keeper import Tell
from rayloom.cluster.embedded.ports import PortBook
from rayloom.cluster.home import Home, write_private

_TALK_TIMEOUT_S = 2.0
_LEFTOVER_PATIENCE_S = 20.0
# After so many failed starts in a row its own data are the likely cause.
_GIVE_UP_DATA_AFTER = 2


class RedisServer:
    """One server under ``HOME/redis``, for a `Keeper`."""

    name = "Redis"
    death_signal: int = signal.SIGTERM
    stop_signals: tuple[tuple[int, float], ...] = ((signal.SIGTERM, 20.0),)

    def __init__(self, home: Home, binary: RedisBinary, identity: Identity) -> None:
        self.log = home.logs / "redis.log"
        self.data = home.redis
        self.port: int | None = None
        self._binary = binary
        self._identity = identity
        self._password = home.secret("redis_password")
        self._ports = PortBook(home.path / "ports.json")

    @property
    def url(self) -> str:
        """Where clients find it; holds the password."""
        return f"redis://:{quote(self._password, safe='')}@127.0.0.1:{self.port}/0"

    def prepare(self, *, failures: int, stopping: threading.Event, tell: Tell) -> list[str]:
        """See `Server`."""
        self._identity.own_folder(self.data)
        if self.port is None:
            self._end_leftover(stopping, tell)
            self.port = self._ports.port("redis")
        if failures == _GIVE_UP_DATA_AFTER:
            self._set_data_aside(tell)
        configuration = self.data / "redis.conf"
        # In a file, as a command line is everybody's to read.
        write_private(configuration, self._configuration())
        self._identity.own(configuration)
        return [str(self._binary.path), str(configuration)]

    def is_ready(self, pid: int) -> bool:
        """See `Server`. False while it loads its data."""
        return self.port is not None and self._say(self.port, "PING") == "+PONG"

    def _configuration(self) -> str:
        return "\n".join(
            (
                "bind 127.0.0.1",
                f"port {self.port}",
                "protected-mode yes",
                f"requirepass {self._password}",
                f'dir "{_quoted(self.data)}"',
                "daemonize no",
                'logfile ""',
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",
                "tcp-keepalive 60",
                "",
            )
        )

    def _say(self, port: int, command: str) -> str:
        """The first line that a server there answers to ``command`` after our password, or nothing."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_TALK_TIMEOUT_S) as connection:
                connection.sendall(f"AUTH {self._password}\r\n{command}\r\n".encode())
                with connection.makefile("rb") as answers:
                    if answers.readline().strip() != b"+OK":
                        return ""
                    return answers.readline().decode(errors="replace").strip()
        except OSError:
            return ""

    def _end_leftover(self, stopping: threading.Event, tell: Tell) -> None:
        """Stop a server that outlived a killed owner: who else takes our password on our port?"""
        port = self._ports.known("redis")
        if port is None or not self._say(port, "PING"):
            return
        tell("stopping the Redis that was left behind")
        self._say(port, "SHUTDOWN")
        until = time.monotonic() + _LEFTOVER_PATIENCE_S
        while self._say(port, "PING"):
            if time.monotonic() > until:
                raise ServiceError(f"a Redis of ours on port {port} can't be stopped: stop it first")
            if stopping.wait(0.05):
                return

    def _set_data_aside(self, tell: Tell) -> None:
        for kept in (self.data / "appendonlydir", self.data / "appendonly.aof"):
            if kept.exists():
                aside = kept.with_name(f"{kept.name}.unreadable-{time.time_ns()}")
                kept.rename(aside)
                tell(f"Redis can't read its data; it starts empty (nothing is lost), the old ones are in {aside}")


def _quoted(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
