"""The processes of stdio servers: what they see, what they may, and that they never outlive us."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.mcp import McpServer
from rayloom.tools.mcp.opening import check
from rayloom.tools.sandbox.processes import memory_bytes, tree
from tests.integration.mcp_servers import DEMO, DEMO_COMMAND
from tests.integration.tools.mcp_rig import GENEROUS_S, SETTINGS, Rig, connected, open_files, until
from tests.integration.waiting import wait_until

FOLDER = str(Path(DEMO).parent)
SNOOP = f"""
import os, socket, sys, time
sys.path.insert(0, {FOLDER!r})
from mcp.server.mcpserver import MCPServer
s = MCPServer("snoop")
@s.tool()
def look(path: str) -> str:
    return open(path).read()
@s.tool()
def write(path: str) -> str:
    open(path, "w").write("x")
    return "written"
@s.tool()
def connect(host: str, port: int) -> str:
    socket.create_connection((host, port), 2)
    return "connected"
@s.tool()
def pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
@s.tool()
def hold(mb: int) -> str:
    kept.append(b"x" * mb * 2**20)
    if mb > 500:
        time.sleep(3600)  # Whoever looks now and then finds it.
    return "held"
kept = []
s.run("stdio")
"""
SMALL = SETTINGS.model_copy(update={"mcp_memory_mb": 300})


def confined(*command: str, **fields: Any) -> McpServer:
    return McpServer(name="it", transport="stdio", command=command, **fields)


async def test_a_confined_server_sees_nothing_of_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    async with connected(confined(sys.executable, "-c", SNOOP)) as rig:
        for path in (str(secret), "/etc/shadow", f"/proc/{os.getpid()}/environ", str(Path.home() / ".profile")):
            with pytest.raises(UserError):
                await rig.call("look", {"path": path})
        for path in ("/usr/x", "/etc/x", str(tmp_path / "x"), sys.executable):
            with pytest.raises(UserError):
                await rig.call("write", {"path": path})
        assert await rig.call("write", {"path": "/workspace/x"}) == {"result": "written"}
        for host in ("127.0.0.1", "169.254.169.254", "192.0.2.1"):
            with pytest.raises(UserError):
                await rig.call("connect", {"host": host, "port": 80})
        found: Any = await rig.call("pids")
        assert os.getpid() not in found["result"]


async def test_a_confined_server_may_read_what_it_was_registered_with(tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a.txt").write_text("hello")
    (tmp_path / "hidden.txt").write_text("secret")
    server = confined(sys.executable, "-c", SNOOP, readable=(str(tmp_path / "shown"),))
    async with connected(server) as rig:
        assert await rig.call("look", {"path": str(tmp_path / "shown" / "a.txt")}) == {"result": "hello"}
        with pytest.raises(UserError):
            await rig.call("look", {"path": str(tmp_path / "hidden.txt")})
        with pytest.raises(UserError):
            await rig.call("write", {"path": str(tmp_path / "shown" / "b.txt")})


@pytest.mark.parametrize("kind", ["in a group, where there can be one", "looked at"])
async def test_a_confined_server_that_takes_too_much_memory_is_ended_and_started_again(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookers: set[int] = set()

    def seen(pids: list[int], *, enough: int) -> int:
        lookers.add(threading.get_ident())
        return memory_bytes(pids, enough=enough)

    monkeypatch.setattr("rayloom.tools.mcp.memory.processes.memory_bytes", seen)
    if kind == "looked at":
        monkeypatch.setattr("rayloom.tools.mcp.memory.ControlGroup.create", lambda limits: None)
    # No probe between: one that is well would take back what came in the way.
    server = confined(sys.executable, "-c", SNOOP)
    async with connected(server, settings=SMALL, probe_every_s=GENEROUS_S) as rig:
        assert await rig.call("hold", {"mb": 20}) == {"result": "held"}
        for _ in range(2):
            listed = len(rig.listed)
            with pytest.raises(Transient, match="more than 300 MiB of memory"):
                await rig.call("hold", {"mb": 1_000})
            await until(lambda: len(rig.listed) > listed)  # noqa: B023 - over before the next round
            # It is there again, and one can read what came in the way.
            assert await rig.call("hold", {"mb": 20}) == {"result": "held"}
            assert "more than 300 MiB" in rig.session.last_error
        assert rig.health == ["ok"]
    # The loop is all servers'.
    assert lookers
    assert threading.get_ident() not in lookers


async def test_a_bwrap_that_nobody_may_open_leaves_no_descriptor_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root becomes somebody else")
    monkeypatch.setattr("rayloom.tools.sandbox.host._reachable", lambda path: path.name != "bwrap")
    # Nobody may go into the second one, so bwrap is started as root there.
    (tmp_path / "ours").mkdir(0o700)
    for readable in ((), (str(tmp_path / "ours"),)):
        files = open_files()
        async with connected(confined(sys.executable, "-c", SNOOP, readable=readable)) as rig:
            assert await rig.call("hold", {"mb": 1}) == {"result": "held"}
        await until(lambda: open_files() <= files)  # noqa: B023 - over before the next round


async def test_where_a_folder_leads_is_what_counts(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("hello")
    for name, target in (
        ("ok", tmp_path / "real"),
        ("up", Path("/")),
        ("proc", Path("/proc/self")),
        ("round", "round"),
    ):
        (tmp_path / name).symlink_to(target)
    for name in ("up", "proc", "up/dev/shm", "round"):
        with pytest.raises(UserError, match=r"can't be (shown|found)"):
            check(confined("x", readable=(str(tmp_path / name),)))
    server = confined(sys.executable, "-c", SNOOP, readable=(str(tmp_path / "ok"),))
    check(server)
    async with connected(server) as rig:
        assert await rig.call("look", {"path": str(tmp_path / "ok" / "a.txt")}) == {"result": "hello"}
    # It leads elsewhere by the time that the server is started.
    (tmp_path / "ok").unlink()
    (tmp_path / "ok").symlink_to("/run")
    rig = Rig(server)
    rig.session.start()
    try:
        with pytest.raises(Transient, match="can't be shown"):
            await rig.session.first()
    finally:
        await rig.session.stop()


async def test_the_secrets_of_a_confined_server_are_in_no_command_line() -> None:
    server = confined(*DEMO_COMMAND, readable=(FOLDER,), env={"API_TOKEN": "correct-horse"})
    async with connected(server) as rig:
        variables: Any = await rig.call("environment")
        assert variables["API_TOKEN"] == "correct-horse"
        assert set(variables) <= {"API_TOKEN", "HOME", "LANG", "LC_CTYPE", "PATH", "PWD", "TMPDIR"}
        assert not any(b"correct-horse" in words for words in _command_lines())


def _command_lines() -> list[bytes]:
    found = []
    for pid in tree(os.getpid()):
        # It may end meanwhile.
        with suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


async def test_confined_servers_from_npm_work(npm_servers: dict[str, str]) -> None:
    async with connected(confined(npm_servers["everything"], "stdio")) as every:
        assert await every.call("echo", {"message": "hi"}) == "Echo: hi"
    async with connected(confined(npm_servers["filesystem"], "/workspace")) as files:
        await files.call("write_file", {"path": "/workspace/a.txt", "content": "x"})
        assert "a.txt" in str(await files.call("list_directory", {"path": "/workspace"}))


async def test_a_program_that_there_is_not_is_told() -> None:
    rig = Rig(confined("no-such-program"))
    rig.session.start()
    try:
        with pytest.raises(Transient, match="no program 'no-such-program'"):
            await rig.session.first()
    finally:
        await rig.session.stop()


@pytest.mark.parametrize("folder", ["/", "/proc", "/dev/shm", "relative", "/a/../etc", "/workspace"])
def test_not_every_folder_can_be_shown(folder: str) -> None:
    with pytest.raises(UserError, match="can't be shown"):
        check(confined("x", readable=(folder,)))


@pytest.mark.parametrize("kind", ["trusted", "confined"])
def test_a_server_does_not_outlive_the_process_that_has_its_session(kind: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.tools.mcp_parent", kind, *DEMO_COMMAND], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"up\n"
        family = set(tree(parent.pid)) - {parent.pid}
        assert len(family) >= 2
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), what=family)
