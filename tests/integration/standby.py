"""A PostgreSQL of the tests' own and a hot standby that follows it, to be paused, killed, stopped and promoted."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.engine import URL

from rayloom.cluster.embedded.binaries import PgBinaries
from rayloom.cluster.embedded.identity import Identity, choose, server_environment
from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.home import Home
from rayloom.cluster.settings import load_settings
from rayloom.db.migrate import upgrade
from rayloom.db.settings import DatabaseSettings
from tests.integration.ports import free_ports
from tests.integration.waiting import wait_until

READER, READER_PASSWORD = "reader", "only-reads"
# What docs/deployment.md tells to grant.
GRANTS = f"""
CREATE ROLE {READER} LOGIN PASSWORD '{READER_PASSWORD}';
GRANT SELECT
    ON tasks, sub_tasks, execution_logs, task_events, log_lines, schedulers, dead_letters, model_calls, limit_alerts
    TO {READER};
GRANT SELECT (id, name) ON users TO {READER};
"""
# A standby needs room for as many connections as its primary has.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    "shared_buffers": "32MB",
    "hot_standby": "on",
    "wal_receiver_status_interval": "1s",
}


def run(url: URL, *statements: str) -> Any:
    """The value that the last of these statements gives on a server."""

    async def go() -> Any:
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return asyncio.run(go())


class Standby:
    """One standby of a primary. ``url`` leads to it, with the primary's own role."""

    def __init__(self, primary: URL, binaries: PgBinaries, folder: Path) -> None:
        self._binaries, self._folder, self._data = binaries, folder, folder / "data"
        folder.mkdir()
        self._identity: Identity = choose(program=[binaries.program("initdb"), "--version"], folder=folder)
        [self._port] = free_ports(1)
        self._server: subprocess.Popen[bytes] | None = None
        self.url = primary.set(port=self._port)
        self._identity.own_folder(folder)
        origin = primary.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
        backup = ["-D", str(self._data), "-d", origin, "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        done = subprocess.run(
            self._identity.command([binaries.program("pg_basebackup"), *backup]),
            env=server_environment(), cwd="/", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def launch(self) -> None:
        """Start it, without waiting for it. It ends with the thread that calls this."""
        settings = _SETTINGS | {"port": str(self._port), "unix_socket_directories": str(self._folder)}
        options = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        command = [self._binaries.program("postgres"), "-D", str(self._data), *options]
        with (self._folder / "log").open("ab") as output:
            self._server = subprocess.Popen(
                self._identity.command(command, death_signal=signal.SIGQUIT),
                env=server_environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it can be read from."""
        wait_until(self._answers, what=lambda: (self._folder / "log").read_text()[-2000:])

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self._folder / "log").read_text()[-2000:]
        with suppress(OSError, asyncpg.PostgresError):
            return bool(run(self.url, "SELECT pg_is_in_recovery()"))
        return False

    def signal(self, number: int) -> None:
        """Send a signal to every one of its processes."""
        assert self._server is not None
        mine = [self._server.pid]
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == self._server.pid:
                    mine.append(int(entry.name))
        for pid in mine:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it at once."""
        if self._server is not None:
            self.signal(signal.SIGKILL)
            self._server.wait()
            self._server = None

    def set(self, **settings: str) -> None:
        """Change settings while it runs."""
        changes = [f"ALTER SYSTEM SET {name} = '{value}'" for name, value in settings.items()]
        run(self.url, *changes, "SELECT pg_reload_conf()")

    def pause(self) -> None:
        """Have it replay nothing more for now; it is still read from and still gets what is written."""
        run(self.url, "SELECT pg_wal_replay_pause()")
        wait_until(lambda: run(self.url, "SELECT pg_get_wal_replay_pause_state()") == "paused")

    def resume(self) -> None:
        """Have it catch up."""
        run(self.url, "SELECT pg_wal_replay_resume()")


class Pair:
    """A primary with rayloom's tables, and the standbys that are made of it."""

    def __init__(self, primary: URL, folder: Path) -> None:
        self.primary, self._folder = primary, folder
        self._binaries = PgBinaries.find()
        self._standbys: list[Standby] = []

    def standby(self) -> Standby:
        """A new standby, running."""
        made = Standby(self.primary, self._binaries, self._folder / f"standby-{len(self._standbys)}")
        self._standbys.append(made)
        made.launch()
        made.wait()
        return made

    def close(self) -> None:
        """Stop every standby."""
        for standby in self._standbys:
            standby.kill()

    def settings(self, replica: URL, *, max_lag_s: float = 60.0) -> DatabaseSettings:
        """A database that is read at ``replica``, too."""
        return DatabaseSettings(
            url=SecretStr(self.primary.render_as_string(hide_password=False)),
            replica_url=SecretStr(replica.render_as_string(hide_password=False)),
            replica_max_lag_s=max_lag_s,
            pool_size=10,
            max_overflow=5,
        )


@contextmanager
def pair(redis_url: str) -> Iterator[Pair]:
    """A primary of its own, so that whatever befalls it is no other test's concern."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    folder.chmod(0o711)
    home = Home(folder / "home")
    home.acquire()
    environ = {"RAYLOOM_HOME": str(home.path), "RAYLOOM_REDIS_URL": redis_url}
    services = EmbeddedServices(load_settings(environ=environ), home, lambda _: None)
    try:
        url = make_url(services.start()[0].primary_dsn())
        asyncio.run(upgrade(url.render_as_string(hide_password=False)))
        run(url, GRANTS, "SELECT 1")
        made = Pair(url, folder)
        try:
            yield made
        finally:
            made.close()
    finally:
        services.stop()
        home.release()
        shutil.rmtree(folder)
