"""A whole rayloom of a test's own: a real `rayloom up` in a process, with its home, ports, services and Ray."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import redis
from sqlalchemy import make_url
from uuid_utils.compat import uuid7

from rayloom.cluster.embedded.postgres import DATABASE, USER
from rayloom.cluster.home import Home
from rayloom.serve.client import Client
from tests.integration.databases import administer, dropping
from tests.integration.ports import free_ports
from tests.integration.processes import MARK, Process, processes_of
from tests.integration.waiting import wait_until

PROGRAM = (sys.executable, "-c", "from rayloom.cluster.cli import main; main()")
SERVING = "serving until Ctrl-C"
START_S, STOP_S, GONE_S = 240.0, 90.0, 120.0
FAULTS = os.environ.get("RAYLOOM_TEST_FAULTS", "")
"""Faults to inject into every instance (`make test-faults`): then attempts fail that would not, and are tried again."""
# Redis has 16 databases; 0 is left to tests that bring no instance of their own.
_REDIS_INDEXES = 15
_taken_indexes: set[int] = set()


@dataclass(slots=True)
class Services:
    """Where the data of one instance are, when they are not embedded: a database and a Redis index of its own."""

    database_url: str
    redis_url: str

    @property
    def environ(self) -> dict[str, str]:
        """The settings that name them."""
        return {"RAYLOOM_DATABASE_URL": self.database_url, "RAYLOOM_REDIS_URL": self.redis_url}


@contextmanager
def given_services() -> Iterator[Services | None]:
    """A new database and an empty Redis index on the servers that RAYLOOM_TEST_*_URL name; None without them."""
    server, cache = os.environ.get("RAYLOOM_TEST_DATABASE_URL"), os.environ.get("RAYLOOM_TEST_REDIS_URL")
    if not server or not cache:
        yield None
        return
    name = f"rl_{uuid7().hex}"
    index = min(set(range(1, _REDIS_INDEXES + 1)) - _taken_indexes)
    _taken_indexes.add(index)
    url = make_url(cache).set(database=str(index)).render_as_string(hide_password=False)
    asyncio.run(administer(server, f"CREATE DATABASE {name}"))
    flush(url)
    try:
        yield Services(make_url(server).set(database=name).render_as_string(hide_password=False), url)
    finally:
        asyncio.run(administer(server, *dropping(name)))
        flush(url)
        _taken_indexes.discard(index)


def flush(redis_url: str) -> None:
    """Empty one database of a Redis."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()


async def _run(url: str, statement: str, *values: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=30)
    try:
        return list(await connection.fetch(statement, *values))
    finally:
        await connection.close()


@dataclass(slots=True)
class Instance:
    """A rayloom. ``extra`` are environment variables of it beyond the usual ones."""

    folder: Path
    services: Services | None
    extra: Mapping[str, str] = field(default_factory=dict)
    environ: dict[str, str] = field(init=False)
    url: str = field(init=False)
    dashboard: str = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _seen: list[Process] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        port, dashboard = free_ports(2)
        self.url, self.dashboard = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.environ = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            MARK: str(self.folder),
            # Ray's sockets lie below it, and a socket's path may have 107 bytes.
            "RAY_TMPDIR": str(self.folder),
            "RAYLOOM_HOME": str(self.home),
            "RAYLOOM_PORT": str(port),
            "RAYLOOM_RAY_DASHBOARD_PORT": str(dashboard),
            "RAYLOOM_DEMO": "0",
            "RAYLOOM_RAY_WARM_WORKERS": "1",
            "RAYLOOM_RETRY_INITIAL_S": "0.2",
            "RAYLOOM_RETRY_MAX_S": "2",
            "RAYLOOM_ALLOW_ADDRESSES": "127.0.0.1/32",
            **({"RAYLOOM_FAULTS": FAULTS} if FAULTS else {}),
            **(self.services.environ if self.services is not None else {}),
            **self.extra,
        }

    # -- its life ------------------------------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """Its RAYLOOM_HOME."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """What `rayloom up` said."""
        return self.folder / "up.log"

    def start(self) -> None:
        """Start it, and wait until it serves."""
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*PROGRAM, "up"], cwd=self.folder, env=self.environ, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
            )
        process = self._process

        def serves() -> bool:
            assert process.poll() is None, f"`rayloom up` ended with {process.returncode}:\n{self.said()}"
            return SERVING in self.said()

        wait_until(serves, within_s=START_S, every_s=0.2, what=self.said)

    def said(self) -> str:
        """All that `rayloom up` said."""
        return self.log.read_text(errors="replace")

    def run_state(self) -> str:
        """What `rayloom up` says of itself in its home; empty when it says nothing."""
        told = Home(self.home).read_run()
        return told.state if told is not None else ""

    def stop(self) -> None:
        """Stop it cleanly; fails when it does not end well, or leaves a process behind."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            self._seen += processes_of(self.folder)
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.returncode == 0, f"`rayloom up` ended with {process.returncode}:\n{self.said()}"
        self.expect_nothing_left()

    def kill(self) -> None:
        """`kill -9` of the supervisor, and of nothing else."""
        assert self._process is not None
        self._seen += processes_of(self.folder)
        self._process.kill()
        self._process.wait()
        self._process = None

    def expect_nothing_left(self) -> None:
        """Wait until no process is left, neither of those that were seen nor any other."""

        def left() -> list[Process]:
            return [each for each in self._seen if each.is_alive] + processes_of(self.folder)

        wait_until(lambda: not left(), within_s=GONE_S, what=left)

    def destroy(self) -> None:
        """Make an end of whatever is left, and of the folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for each in processes_of(self.folder):
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        wait_until(lambda: not processes_of(self.folder), within_s=GONE_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The ends of the logs that were written to last: ours, those of the services, and of Ray's processes."""
        files = [*self.home.glob("logs/*"), *self.folder.glob("ray/session_latest/logs/worker-*"), self.log]
        told = sorted(
            (file for file in files if file.is_file() and file.stat().st_size), key=lambda file: file.stat().st_mtime
        )
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-1_500:]}" for file in told[-10:])

    # -- its processes -------------------------------------------------------------------------------------------------

    def processes(self, title: str = "") -> list[Process]:
        """Its living processes whose command line holds ``title``."""
        return [each for each in processes_of(self.folder) if title in each.title]

    def process(self, title: str) -> Process:
        """The one process with this in its command line."""
        found = wait_until(lambda: self.processes(title), what=lambda: [each.title for each in self.processes()])
        return min(found, key=lambda each: each.born)

    def workers(self, task_id: str, subtask: str = "%") -> list[Process]:
        """The workers that run attempts of a task, or of one of its subtasks, once rayloom has recorded them."""
        rows = self.sql(
            "SELECT s.worker_id, l.worker_id FROM sub_tasks s LEFT JOIN execution_logs l ON l.sub_task_id = s.id "
            "WHERE s.parent_id = $1::uuid AND s.key LIKE $2",
            task_id, subtask,
        )  # fmt: skip
        names = {worker_id for row in rows for worker_id in row if worker_id}
        # Ray names the log of a worker after its id and its process.
        logs = self.folder.glob("ray/session_*/logs/python-core-worker-*_*.log")
        pids = {int(pid) for log in logs for name, pid in [log.stem[19:].split("_")] if name in names}
        return [each for each in self.processes() if each.pid in pids and each.is_at_work]

    # -- its doors -----------------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key of its first admin."""
        return (self.home / "api_key").read_text().strip()

    def client(self, key: str = "") -> Client:
        """Our own client, patient with an API that is away for a while."""
        return Client(self.url, key or self.key, patience_s=START_S, stream_patience_s=START_S)

    def http(self, key: str = "") -> httpx2.Client:
        """A plain client."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60, trust_env=False)

    @property
    def database_url(self) -> str:
        """Its database, with all rights."""
        if self.services is not None:
            return self.services.database_url
        password = (self.home / "database_password").read_text().strip()
        return f"postgresql://{USER}:{password}@127.0.0.1:{self._port('postgres')}/{DATABASE}"

    @property
    def redis_url(self) -> str:
        """Its Redis."""
        if self.services is not None:
            return self.services.redis_url
        return f"redis://:{(self.home / 'redis_password').read_text().strip()}@127.0.0.1:{self._port('redis')}/0"

    def _port(self, name: str) -> int:
        return int(json.loads((self.home / "ports.json").read_text())[name])

    def sql(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """The rows of a statement."""
        return asyncio.run(_run(self.database_url, statement, *values))

    def rayloom(self, *arguments: str, code: int = 0) -> str:
        """One command of the command line; what it printed."""
        return self.command(*PROGRAM, *arguments, code=code)

    def command(
        self, *program: str, code: int = 0, folder: Path | None = None, timeout_s: float = 180, **env: str
    ) -> str:
        """A program in the environment of the instance; what it printed."""
        environ = {**self.environ, **env}
        scripts = str(Path(sys.executable).parent)
        environ["PATH"] = os.pathsep.join([scripts, environ.get("PATH", "")])
        ended = subprocess.run(
            program,
            cwd=folder or self.folder,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert ended.returncode == code, f"exit {ended.returncode}:\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def ray(self, *arguments: str, folder: Path | None = None) -> str:
        """One command of Ray, called as README.md says; what it printed."""
        return self.command("sh", "-ec", 'eval "$(rayloom env)"; exec ray "$@"', "ray", *arguments, folder=folder)

    def json(self, *arguments: str) -> Any:
        """One command with --json; its document."""
        return json.loads(self.rayloom(*arguments, "--json"))


@contextmanager
def running(**extra: str) -> Iterator[Instance]:
    """A rayloom for the length of the block. Afterwards it is stopped, and has left nothing behind."""
    with prepared(lambda _: None, **extra) as instance:
        yield instance


@contextmanager
def prepared(prepare: Callable[[Path], None], **extra: str) -> Iterator[Instance]:
    """The same; ``prepare`` is handed its home, made and empty, before it starts."""
    with given_services() as services:
        instance = Instance(Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp")), services, extra)
        try:
            instance.home.mkdir(mode=0o700)
            prepare(instance.home)
            instance.start()
            yield instance
            instance.stop()
        except BaseException as error:
            error.add_note(instance.last_words())
            raise
        finally:
            instance.destroy()
