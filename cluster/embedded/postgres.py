"""The embedded PostgreSQL: stock durability, password authentication, loopback only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import quote

from rayloom.cluster.embedded.binaries import PgBinaries
from rayloom.cluster.embedded.identity import Identity, ServiceError, server_environment
from rayloom.cluster.embedded.keeper import Tell
from rayloom.cluster.embedded.ports import PortBook
from rayloom.cluster.home import Home

USER = DATABASE = "rayloom"
MAX_CONNECTIONS = 300
_LEFTOVER_SIGNALS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
_READY_LINE = 7

# fsync, synchronous_commit and full_page_writes stay at their stock values: on.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": str(MAX_CONNECTIONS),
    "superuser_reserved_connections": "5",
    "unix_socket_permissions": "0700",
    "password_encryption": "scram-sha-256",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    "wal_buffers": "16MB",
    "max_wal_size": "2GB",
    "min_wal_size": "160MB",
    "random_page_cost": "1.1",
    # Many small statements: neither pays, and parallel workers would want a large /dev/shm.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Queue tables turn over quickly.
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_scale_factor": "0.05",
    # A killed worker must not hold its row locks for hours.
    "idle_in_transaction_session_timeout": "5min",
    "tcp_keepalives_idle": "60",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    # Errors of statements go to who sent them, and may hold somebody's data.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",
    "log_line_prefix": "%m [%p] ",
}


class PostgresServer:
    """One cluster under ``HOME/postgres``, for a `Keeper`."""

    name = "PostgreSQL"
    death_signal: int = signal.SIGINT
    """Fast shutdown."""
    stop_signals: tuple[tuple[int, float], ...] = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0))

    def __init__(self, home: Home, binaries: PgBinaries, identity: Identity, sockets: Path) -> None:
        self.log = home.logs / "postgres.log"
        self.data = home.postgres / "data"
        self.sockets = sockets
        self.port: int | None = None
        self._home = home
        self._binaries = binaries
        self._identity = identity
        self._password = home.secret("database_password")
        self._ports = PortBook(home.path / "ports.json")

    @property
    def url(self) -> str:
        """Where SQLAlchemy finds the database; holds the password."""
        return f"postgresql+asyncpg://{USER}:{quote(self._password, safe='')}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self, *, failures: int, stopping: threading.Event, tell: Tell) -> list[str]:
        """See `Server`."""
        self._identity.own_folder(self._home.postgres)
        if not (self.data / "PG_VERSION").is_file():
            tell("making the database cluster")
            self._initialise()
        self._identity.own(self.data)
        self._end_leftover(stopping, tell)
        self._identity.own_folder(self.sockets)
        if self.port is None or (failures and self._ports.known("postgres") != self.port):
            self.port = self._ports.port("postgres")
        settings = _SETTINGS | {"port": str(self.port), "unix_socket_directories": str(self.sockets)}
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        return [self._binaries.program("postgres"), "-D", str(self.data), *options]

    def is_ready(self, pid: int) -> bool:
        """See `Server`. As ``pg_ctl`` does, it asks the pid file, which needs no connection."""
        lines = self._pid_file()
        return len(lines) > _READY_LINE and lines[0] == str(pid) and lines[_READY_LINE].strip() == "ready"

    def _initialise(self) -> None:
        """Make the cluster with its database, whole or not at all."""
        fresh, password_file = self._home.postgres / "data.new", self._home.postgres / "password"
        shutil.rmtree(fresh, ignore_errors=True)
        self._identity.own_folder(fresh)
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        self._identity.own(password_file)
        try:
            options = ["-U", USER, "-A", "scram-sha-256", "--pwfile", str(password_file), "-E", "UTF8", "--no-locale"]
            self._run([self._binaries.program("initdb"), "-D", str(fresh), *options, "--data-checksums"])
        finally:
            password_file.unlink()
        self._run(
            [self._binaries.program("postgres"), "--single", "-D", str(fresh), "-c", "exit_on_error=on", "postgres"],
            statement=f"CREATE DATABASE {DATABASE}\n",
        )
        fresh.rename(self.data)

    def _run(self, program: list[str], *, statement: str = "") -> None:
        done = subprocess.run(
            self._identity.command(program),
            env=server_environment(),
            cwd="/",
            input=statement,
            capture_output=True,
            text=True,
            check=False,
        )
        self.log.touch(mode=0o600)
        with self.log.open("a") as log:
            log.write(done.stdout + done.stderr)
        if done.returncode:
            words = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            why = next((line for line in words if "error" in line.lower() or "FATAL" in line), "it said nothing")
            raise ServiceError(f"PostgreSQL's data can't be made in {self.data}: {why.strip()[:300]}; see {self.log}")

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _end_leftover(self, stopping: threading.Event, tell: Tell) -> None:
        """Stop a server that outlived a killed owner, and forget one whose process number somebody else has now.

        We own the home, so whoever serves these data is a leftover.
        """
        lines = self._pid_file()
        pid = int(lines[0]) if lines and lines[0].isdigit() else None
        if pid is None or not Path(f"/proc/{pid}").exists():
            return
        if not self._serves_our_data(pid):
            # PostgreSQL would take that stranger for itself, and refuse to start for ever.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            return
        tell(f"stopping the PostgreSQL that was left behind (process {pid})")
        for number, patience_s in _LEFTOVER_SIGNALS:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            until = time.monotonic() + patience_s
            while time.monotonic() < until:
                if not self._serves_our_data(pid) or stopping.wait(0.05):
                    return
        raise ServiceError(f"process {pid} serves {self.data} and can't be stopped: stop it first")

    def _serves_our_data(self, pid: int) -> bool:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        # A zombie's command line is empty.
        return os.path.basename(command[0]) == b"postgres" and os.fsencode(self.data) in command
