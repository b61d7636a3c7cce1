"""The ways in which root runs PostgreSQL, each for real, and what a server that was left behind meets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.cluster.embedded import services
from rayloom.cluster.embedded.binaries import PgBinaries
from rayloom.cluster.embedded.identity import Identity, ServiceError, Way, as_root, choose, server_environment
from rayloom.cluster.embedded.postgres import PostgresServer
from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.home import Home
from rayloom.cluster.settings import load_settings
from tests.integration.cluster.waiting import query

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a choice")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may pass through."""
    with tempfile.TemporaryDirectory(prefix="rl-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def serve(home: Path, statement: str) -> object:
    """Own a home for one statement."""
    owned = Home(home)
    owned.acquire()
    embedded = EmbeddedServices(load_settings(environ={"RAYLOOM_HOME": str(home)}), owned, lambda _line: None)
    try:
        database, _ = embedded.start()
        return asyncio.run(query(database.primary_dsn().replace("+asyncpg", ""), statement))
    finally:
        embedded.stop()
        owned.release()


@only_root
def test_each_way_serves_the_data_that_another_made(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = open_folder / "home"
    home.mkdir(mode=0o711)
    probe = PgBinaries.find().probe()
    ways: tuple[Way, ...] = ("userns", "capability", "nobody")
    usable = [way for way in ways if as_root(way).can_run(probe, folder=home)]
    assert usable, "root has no way here to run PostgreSQL"
    count = "INSERT INTO kept SELECT coalesce(max(n), 0) + 1 FROM kept RETURNING n"
    monkeypatch.setattr(services, "choose", lambda **_: as_root(usable[0]))
    serve(home, "CREATE TABLE kept (n int)")
    for turn, way in enumerate([*usable, *usable], start=1):
        identity = as_root(way)
        monkeypatch.setattr(services, "choose", lambda identity=identity, **_: identity)
        assert serve(home, count) == turn
        assert (home / "postgres" / "data").stat().st_uid == identity.owner_uid


@only_root
def test_data_belong_to_nobody_only_where_there_is_no_other_way(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other programs of that user could read them, where they may enter the folder."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    if as_root("userns").can_run(["/bin/true"], folder=open_folder):
        assert choose(program=["/bin/true"], folder=open_folder).way == "userns"
    able = Identity.can_run
    monkeypatch.setattr(Identity, "can_run", lambda self, *a, **k: self.way != "userns" and able(self, *a, **k))
    assert choose(program=["/bin/true"], folder=open_folder).way == "nobody"
    monkeypatch.setattr(Identity, "can_run", lambda self, program, *, folder: self.way == "capability")
    assert choose(program=["/bin/true"], folder=closed).way == "capability"


@only_root
def test_root_without_any_way_is_told_what_to_do(open_folder: Path) -> None:
    with pytest.raises(ServiceError, match="run rayloom as an ordinary user, or set RAYLOOM_DATABASE_URL"):
        choose(program=["/bin/false"], folder=open_folder)


def test_a_server_that_was_left_behind_is_stopped_first(open_folder: Path) -> None:
    home = open_folder / "home"
    serve(home, "CREATE TABLE kept (n int)")
    identity = choose(program=[PgBinaries.find().program("initdb"), "--version"], folder=home)
    server = PostgresServer(Home(home), PgBinaries.find(), identity, services.socket_folder(home))
    command = server.prepare(failures=0, stopping=threading.Event(), tell=lambda _line: None)
    with subprocess.Popen(
        identity.command(command),
        env=server_environment(),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    ) as leftover:
        looked = threading.Event()
        while not server.is_ready(leftover.pid):
            assert leftover.poll() is None
            looked.wait(0.02)
        # The port, too, is that of the one left behind.
        assert serve(home, "SELECT count(*) FROM kept") == 0
        assert leftover.wait(timeout=60) == 0


def test_data_of_another_version_are_not_touched(open_folder: Path) -> None:
    home = open_folder / "home"
    serve(home, "SELECT 1")
    version = home / "postgres" / "data" / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(ServiceError, match=r"made by PostgreSQL 9, and here is only .*: install version 9"):
        serve(home, "SELECT 1")
    assert version.read_text() == "9\n"


def test_data_without_their_password_are_not_touched(open_folder: Path) -> None:
    home = open_folder / "home"
    serve(home, "SELECT 1")
    (home / "database_password").unlink()
    with pytest.raises(ServiceError, match="database_password is missing"):
        serve(home, "SELECT 1")


def test_a_half_made_cluster_is_made_anew(open_folder: Path) -> None:
    home = open_folder / "home"
    (home / "postgres" / "data.new").mkdir(parents=True)
    (home / "postgres" / "data.new" / "PG_VERSION").write_text("17\n")
    assert serve(home, "SELECT 1") == 1


@pytest.mark.parametrize("binaries", [pytest.param(found, id=f"{found.major}") for found in PgBinaries.all()])
def test_every_installation_that_is_found_serves(
    open_folder: Path, binaries: PgBinaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PgBinaries, "find", lambda **_: binaries)
    version = serve(open_folder / "home", "SHOW server_version_num")
    assert str(version).startswith(str(binaries.major))


def test_a_log_says_why_a_server_does_not_start(open_folder: Path) -> None:
    home = open_folder / "home"
    serve(home, "SELECT 1")
    (home / "postgres" / "data" / "global" / "pg_control").unlink()
    with pytest.raises(ServiceError, match=r"PostgreSQL does not start: .*pg_control.*; see .*postgres\.log"):
        serve(home, "SELECT 1")
