"""Sessions with real MCP servers: each transport, both revisions of the protocol, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.mcp import CallLine, McpServer
from tests.integration.mcp_servers import DEMO, DEMO_COMMAND, serving
from tests.integration.ports import free_ports
from tests.integration.tools.mcp_rig import GENEROUS_S, Rig, children, connected, memory_mb, open_files, until

NEW, OLD = "2026-07-28", "2025-11-25"
ODD = str(Path(DEMO).with_name("mcp_odd.py"))
DEMO_TOOLS = {"add", "counts", "die", "environment", "fail", "grow", "report", "slow"}


def stdio(*command: str, **fields: Any) -> McpServer:
    return McpServer(name="it", transport="stdio", command=command, trusted=True, **fields)


DEMO_STDIO = stdio(*DEMO_COMMAND, env={"API_TOKEN": "correct-horse"})


@pytest.mark.parametrize(("transport", "path"), [("stdio", ""), ("http", "/mcp"), ("sse", "/sse")])
async def test_each_transport_lists_calls_tells_and_cancels(transport: Any, path: str) -> None:
    [port] = free_ports(1)
    if transport == "stdio":
        await _expect_all(DEMO_STDIO)
        return
    server = McpServer(name="it", transport=transport, url=f"http://127.0.0.1:{port}{path}")
    with serving(port, sys.executable, DEMO, transport, str(port)):
        await _expect_all(server)


async def _expect_all(server: McpServer) -> None:
    async with connected(server) as rig:
        assert rig.session.protocol == NEW
        assert rig.session.server_version == "7.1"
        assert rig.tools == DEMO_TOOLS
        assert await rig.call("add", {"a": 1, "b": 2}) == {"result": 3}
        lines: list[CallLine] = []
        assert await rig.call("report", {"steps": 2}, lines=lines) == {"result": "reported"}
        assert [line.message for line in lines] == ["progress 1 of 2: step 1", "progress 2 of 2: step 2"]
        with pytest.raises(UserError, match="valid integer") as wrong:
            await rig.call("add", {"a": "x", "b": 1})
        assert wrong.value.code == "MCP_TOOL_FAILED"
        with pytest.raises(UserError):
            await rig.call("nothing")
        with pytest.raises(Transient) as late:
            await rig.call("slow", {"seconds": 60}, timeout_s=3)
        assert late.value.code == "MCP_TIMEOUT"

        # Both a call that is late and one that somebody stops are stopped at the server.
        call = asyncio.create_task(rig.call("slow", {"seconds": 60}))
        await until(lambda: len(rig.session.calls) == 1)
        await rig.call("add", {"a": 1, "b": 1})
        call.cancel()
        counts: Any = {}
        async with asyncio.timeout(GENEROUS_S):
            while counts.get("cancelled") != 2:
                counts = await rig.call("counts")

        await rig.call("grow", {"name": "fresh"})
        await until(lambda: "fresh" in rig.tools)
        assert await rig.call("fresh") == "fresh"
        assert rig.health == ["ok"]


async def test_a_stdio_server_that_dies_in_a_call_is_started_again() -> None:
    before = children()
    async with connected(DEMO_STDIO) as rig:
        first: Any = await rig.call("counts")
        call = asyncio.create_task(rig.call("slow", {"seconds": 60}))
        await until(lambda: len(rig.session.calls) == 1)
        await rig.call("add", {"a": 1, "b": 1})
        listed = len(rig.listed)
        os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises(Transient) as lost:
            await call
        assert lost.value.code == "MCP_CONNECTION_LOST"
        await until(lambda: len(rig.listed) > listed)
        second: Any = await rig.call("counts")
        assert second["pid"] != first["pid"]
        with pytest.raises(Transient):
            await rig.call("die")
        await until(lambda: len(rig.listed) > listed + 1)
        assert await rig.call("add", {"a": 1, "b": 2}) == {"result": 3}
    await until(lambda: children() <= before)


async def test_a_server_that_does_not_know_the_session_any_more_is_greeted_again(npm_servers: dict[str, str]) -> None:
    [port] = free_ports(1)
    server = McpServer(name="it", transport="http", url=f"http://127.0.0.1:{port}/mcp")
    command = (npm_servers["everything"], "streamableHttp")
    with serving(port, *command, PORT=str(port)):
        rig = Rig(server)
        rig.session.start()
        await rig.session.first()
        assert rig.session.protocol == OLD
        assert await rig.call("echo", {"message": "hi"}) == "Echo: hi"
    try:
        with serving(port, *command, PORT=str(port)):
            async with asyncio.timeout(GENEROUS_S):
                while True:
                    try:
                        assert await rig.call("echo", {"message": "again"}) == "Echo: again"
                        break
                    except Transient:
                        await asyncio.sleep(0.1)
    finally:
        await rig.session.stop()


async def test_a_server_that_is_away_is_offline_and_comes_back() -> None:
    [port] = free_ports(1)
    server = McpServer(name="it", transport="http", url=f"http://127.0.0.1:{port}/mcp")
    with serving(port, sys.executable, DEMO, "http", str(port)):
        rig = Rig(server, probe_every_s=0.2)
        rig.session.start()
        await rig.session.first()
    try:
        await until(lambda: rig.health == ["ok", "offline"])
        assert rig.session.last_error
        with serving(port, sys.executable, DEMO, "http", str(port)):
            await until(lambda: rig.health == ["ok", "offline", "ok"])
            assert await rig.call("add", {"a": 1, "b": 2}) == {"result": 3}
    finally:
        await rig.session.stop()


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (stdio("/no/such/command"), "No such file or directory"),
        (stdio(sys.executable, "-c", "import sys; sys.exit('I need a secret: ' + 'correct-horse')"), "need a secret"),
        (McpServer(name="it", transport="http", url="http://10.1.2.3/mcp"), "not a public address"),
        (McpServer(name="it", transport="http", url="http://127.0.0.1:9/mcp"), "Connect"),
    ],
    ids=["no such command", "a command that ends", "a private address", "nobody there"],
)
async def test_what_came_in_the_way_of_a_session_is_told(server: McpServer, said: str) -> None:
    rig = Rig(server)
    rig.session.start()
    try:
        with pytest.raises(Transient, match=said) as error:
            await rig.session.first()
        assert error.value.code == "MCP_UNREACHABLE"
    finally:
        await rig.session.stop()


async def test_the_secrets_of_a_server_are_in_no_message() -> None:
    command = (sys.executable, "-c", "import os, sys; sys.exit('bad token ' + os.environ['API_TOKEN'])")
    rig = Rig(stdio(*command, env={"API_TOKEN": "correct-horse"}))
    rig.session.start()
    try:
        with pytest.raises(Transient, match=r"bad token \*\*\*"):
            await rig.session.first()
    finally:
        await rig.session.stop()


async def test_servers_from_pypi_work_unmodified(pypi_servers: dict[str, str], tmp_path: Path) -> None:
    async with connected(stdio(pypi_servers["mcp-server-time"])) as time:
        assert time.session.protocol == NEW
        assert time.tools == {"get_current_time", "convert_time"}
        arguments: Any = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        assert "21:00" in str(await time.call("convert_time", arguments))
    process = await asyncio.create_subprocess_exec("git", "init", "--quiet", str(tmp_path))
    assert await process.wait() == 0
    async with connected(stdio(pypi_servers["mcp-server-git"], "--repository", str(tmp_path))) as git:
        assert "git_status" in git.tools
        assert "No commits yet" in str(await git.call("git_status", {"repo_path": str(tmp_path)}))


async def test_servers_from_npm_work_unmodified(npm_servers: dict[str, str], tmp_path: Path) -> None:
    async with connected(stdio(npm_servers["everything"], "stdio")) as every:
        assert every.session.protocol == OLD
        assert await every.call("echo", {"message": "hi"}) == "Echo: hi"
        image: Any = await every.call("get-tiny-image")
        kinds = [(item["type"], item.get("mimeType")) for item in image["content"]]
        assert ("image", "image/png") in kinds
        assert "temperature" in str(await every.call("get-structured-content", {"location": "Chicago"}))
        lines: list[CallLine] = []
        await every.call("trigger-long-running-operation", {"duration": 0.2, "steps": 2}, lines=lines)
        assert [line.fields for line in lines] == [{"progress": 1.0, "total": 2.0}, {"progress": 2.0, "total": 2.0}]
    (tmp_path / "a.txt").write_text("hello")
    async with connected(stdio(npm_servers["filesystem"], str(tmp_path))) as files:
        assert "hello" in str(await files.call("read_text_file", {"path": str(tmp_path / "a.txt")}))
        with pytest.raises(UserError, match="denied"):
            await files.call("read_text_file", {"path": "/etc/passwd"})
    async with connected(stdio(npm_servers["memory"], env={"MEMORY_FILE_PATH": str(tmp_path / "m.json")})) as memory:
        entity: Any = {"name": "Ann", "entityType": "person", "observations": ["likes tea"]}
        await memory.call("create_entities", {"entities": [entity]})
        assert "likes tea" in str(await memory.call("search_nodes", {"query": "Ann"}))


@pytest.mark.parametrize(
    "calls", [400, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1_200)])], ids=str
)
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_two_hundred_calls_at_a_time_leak_nothing(transport: Any, calls: int) -> None:
    [port] = free_ports(1)
    if transport == "stdio":
        await _expect_no_leak(DEMO_STDIO, calls)
        return
    with serving(port, sys.executable, DEMO, "http", str(port)):
        await _expect_no_leak(McpServer(name="it", transport="http", url=f"http://127.0.0.1:{port}/mcp"), calls)


async def _expect_no_leak(server: McpServer, calls: int) -> None:
    processes, idle = children(), open_files()
    async with connected(server) as rig:

        async def round_of(count: int) -> None:
            made = [rig.call("add", {"a": each, "b": 1}, timeout_s=120) for each in range(count)]
            assert await asyncio.gather(*made) == [{"result": each + 1} for each in range(count)]

        await round_of(200)
        await until(lambda: len(open_files() - idle) < 100)
        files, tasks, memory = open_files(), len(asyncio.all_tasks()), memory_mb()
        for _ in range(calls // 200):
            await round_of(200)
        await until(lambda: len(open_files() - files) <= 2)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        # A leak of 5 KB a call would show.
        assert memory_mb() - memory < 50
        assert len(rig.session.calls) == 0
        assert rig.health == ["ok"]
    await until(lambda: children() <= processes)


async def test_what_a_server_should_not_do_is_borne_or_told() -> None:
    async with connected(stdio(sys.executable, ODD)) as rig:
        # It lists them page by page.
        assert [tool.name for tool in rig.listed[-1]] == ["broken", "Ünusual name!", "crash"]
        with pytest.raises(Transient, match="Internal error") as crash:
            await rig.call("crash")
        assert crash.value.code == "MCP_ERROR"
        two: Any = await rig.call("Ünusual name!")
        assert two == {"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}


@pytest.mark.parametrize("rounds", [2, pytest.param(500, marks=pytest.mark.long)], ids=str)
async def test_twenty_servers_at_a_time_leak_nothing(rounds: int) -> None:
    processes, files = children(), open_files()
    rigs = [Rig(stdio(sys.executable, ODD)) for _ in range(20)]
    for rig in rigs:
        rig.session.start()
    try:
        await asyncio.gather(*(rig.session.first() for rig in rigs))
        assert len(children() - processes) == 20
        for _ in range(rounds):
            await asyncio.gather(*(rig.call("Ünusual name!") for rig in rigs))
        assert {len(rig.session.calls) for rig in rigs} == {0}
    finally:
        await asyncio.gather(*(rig.session.stop() for rig in rigs))
    await until(lambda: children() <= processes)
    await until(lambda: len(open_files() - files) <= 2)
