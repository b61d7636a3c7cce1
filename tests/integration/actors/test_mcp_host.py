"""The host of MCP servers, with real servers, and with rows that a test holds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayloom.actors.mcp_host import McpHost
from rayloom.dag.errors import Bug, Refused, Transient, UserError
from rayloom.dag.mcp import McpCall, McpServer, ServerHealth
from rayloom.dag.ports import RegisteredTool
from rayloom.tools.mcp.session import STOP_S
from tests.integration.mcp_servers import DEMO, DEMO_COMMAND
from tests.integration.tools.mcp_rig import GENEROUS_S, SETTINGS, children, until

ODD = str(Path(DEMO).with_name("mcp_odd.py"))
SERVER = McpServer(
    name="demo", transport="stdio", command=DEMO_COMMAND, trusted=True, env={"API_TOKEN": "correct-horse"}
)


class Rows:
    """``ServerRows`` in memory."""

    def __init__(self) -> None:
        self.servers: dict[str, McpServer | None] = {}
        self.tools: dict[str, list[str]] = {}
        self.health: list[Mapping[str, ServerHealth]] = []
        self.looks = 0
        self.is_deaf = False

    async def look(self) -> None:
        if self.is_deaf:
            raise Transient("ACTOR_UNAVAILABLE", "the registry is between two lives")
        self.looks += 1

    async def read(self) -> Mapping[str, McpServer | None]:
        return dict(self.servers)

    async def add(self, server: McpServer, tools: Sequence[RegisteredTool]) -> None:
        if any(tool.name == "demo.taken" for tool in tools):
            raise UserError("TOOL_EXISTS", "taken")
        await self.keep(server)
        await self.set_tools(server.name, tools)

    async def keep(self, server: McpServer) -> None:
        self.servers[server.name] = server

    async def set_tools(self, name: str, tools: Sequence[RegisteredTool]) -> frozenset[str]:
        self.tools[name] = sorted(tool.name for tool in tools)
        return frozenset(self.tools[name])

    async def set_health(self, health: Mapping[str, ServerHealth]) -> None:
        self.health.append(health)

    async def remove(self, name: str) -> None:
        del self.servers[name]


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
async def host(rows: Rows) -> AsyncIterator[McpHost]:
    before = children()
    host = McpHost(rows, rows.look, SETTINGS)
    await host.step()
    yield host
    await host.close()
    await until(lambda: children() <= before)


def call(tool: str, id_: str = "1", **arguments: Any) -> McpCall:
    return McpCall(id=id_, server="demo", tool=tool, arguments=arguments, idempotency_key="key")


async def test_a_server_is_registered_called_changed_and_removed(host: McpHost, rows: Rows) -> None:
    assert "demo.add" in await host.register(SERVER)
    assert rows.servers == {"demo": SERVER}
    answer = await host.call(call("report", steps=2), True)
    assert (answer.output, len(answer.lines)) == ({"result": "reported"}, 2)
    environment: Any = (await host.call(call("environment"), True)).output
    assert environment["API_TOKEN"] == "***"
    with pytest.raises(UserError, match="already"):
        await host.register(SERVER)
    await host.step()
    assert rows.health == [{"demo": "ok"}]

    view = await host.change("demo", {"is_active": False, "env": {"API_TOKEN": None, "NEW": "x"}})
    assert (view["env"], view["is_active"]) == ({"NEW": "***"}, False)
    with pytest.raises(Refused):
        await host.call(call("add", a=1, b=1), True)
    assert (await host.health())["servers"] == 0
    await host.remove("demo")
    for gone in (host.show("demo"), host.remove("demo"), host.call(call("add", a=1, b=1), True)):
        with pytest.raises((UserError, KeyError)):
            await gone


async def test_what_somebody_else_wrote_into_the_rows_is_done(host: McpHost, rows: Rows) -> None:
    rows.servers["demo"] = SERVER
    rows.servers["sealed"] = None
    await host.step()
    assert (await host.call(call("add", a=1, b=1), True)).output == {"result": 2}
    rows.servers["demo"] = replace(SERVER, is_active=False)
    await host.step()
    with pytest.raises(Refused):
        await host.call(call("add", a=1, b=1), True)
    del rows.servers["demo"]
    await host.step()
    with pytest.raises(UserError):
        await host.show("demo")


async def test_a_change_of_the_list_reaches_the_rows(host: McpHost, rows: Rows) -> None:
    await host.register(SERVER)
    looks = rows.looks
    await host.call(call("grow", name="fresh"), True)
    await until(lambda: "demo.fresh" in rows.tools["demo"])
    await until(lambda: rows.looks > looks)
    shown: Any = await host.show("demo")
    assert "demo.fresh" in shown["tools"]


async def test_what_is_done_is_done_though_the_registry_can_not_be_told_yet(host: McpHost, rows: Rows) -> None:
    rows.is_deaf = True
    assert "demo.add" in await host.register(SERVER)
    view = await host.change("demo", {"is_active": False})
    assert view["is_active"] is False
    await host.step()
    assert rows.looks == 0
    rows.is_deaf = False
    await host.step()
    assert rows.looks > 0
    looks = rows.looks
    await host.step()
    assert rows.looks == looks


async def test_a_server_that_never_answers_keeps_nobody_waiting(host: McpHost, rows: Rows) -> None:
    # It hears neither the end of its input nor the word to end.
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    rows.servers["deaf"] = replace(SERVER, name="deaf", command=(sys.executable, "-c", deaf))
    before = children()
    await host.step()
    await until(lambda: len(children() - before) == 1)
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    removing = asyncio.create_task(host.remove("deaf"))
    await until(lambda: "deaf" not in rows.servers)
    await host.step()
    assert not removing.done()
    await removing
    # A connect is given up at once: what takes time is that the process ends.
    assert loop.time() - begun_at < STOP_S
    assert children() <= before


async def test_a_server_of_a_name_whose_last_one_has_not_ended_waits_for_that(host: McpHost, rows: Rows) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    rows.servers["demo"] = replace(SERVER, command=(sys.executable, "-c", deaf))
    before = children()
    await host.step()
    await until(lambda: len(children() - before) == 1)
    last = children() - before
    # Somebody else removed the row: nobody waits for the server to end.
    del rows.servers["demo"]
    await host.step()
    assert "demo.add" in await host.register(SERVER)
    assert not children() & last


async def test_a_server_whose_folders_went_bad_can_be_switched_off(host: McpHost, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    await host.register(replace(SERVER, readable=(str(tmp_path / "shown"),)))
    (tmp_path / "shown").rmdir()
    (tmp_path / "shown").symlink_to("/run")
    with pytest.raises(UserError, match="can't be shown"):
        await host.change("demo", {"timeout_s": 10.0})
    assert (await host.change("demo", {"is_active": False}))["is_active"] is False
    with pytest.raises(UserError, match="can't be shown"):
        await host.change("demo", {"is_active": True})


async def test_a_schema_that_takes_forever_keeps_nobody_waiting(host: McpHost) -> None:
    await host.register(replace(SERVER, command=(sys.executable, ODD, "slow-schema")))
    async with asyncio.timeout(20):
        output = (await host.call(call("slow-schema"), True)).output
    assert output == {"text": "a" * 60 + "!"}
    with pytest.raises(Bug) as error:
        await host.call(call("broken"), True)
    assert error.value.code == "TOOL_OUTPUT_INVALID"


async def test_a_call_is_stopped_for_who_asks_and_for_who_has_died(
    host: McpHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.register(SERVER)
    for id_, stop in (("asked", host.cancel("demo", "asked")), ("forsaken", host.step())):
        making = asyncio.create_task(host.call(call("slow", id_, seconds=60), True))
        assert await host.lines("demo", "unknown", 0) == ()
        counts: Any = (await host.call(call("counts", "2"), True)).output
        monkeypatch.setattr("rayloom.actors.mcp_host.FORSAKEN_S", 0.0)
        await stop
        with pytest.raises(Transient):
            await making
        before = counts["cancelled"]
        async with asyncio.timeout(GENEROUS_S):
            while counts["cancelled"] == before:
                counts = (await host.call(call("counts", "2"), True)).output


@pytest.mark.parametrize(
    ("server", "code"),
    [
        (replace(SERVER, name="a.b"), "TOOL_NAME_INVALID"),
        (replace(SERVER, name="skill"), "TOOL_NAME_INVALID"),
        (replace(SERVER, url="http://x/"), "MCP_INVALID"),
        (replace(SERVER, command=("/no/such",)), "MCP_UNREACHABLE"),
        (replace(SERVER, command=(sys.executable, ODD, "bad-schema")), "MCP_SCHEMA_INVALID"),
        (replace(SERVER, command=(sys.executable, ODD, "taken")), "TOOL_EXISTS"),
    ],
)
async def test_what_can_not_be_registered_leaves_nothing(
    host: McpHost, rows: Rows, server: McpServer, code: str
) -> None:
    with pytest.raises(UserError) as error:
        await host.register(server)
    assert error.value.code == code
    assert rows.servers == {}
    assert (await host.health())["servers"] == 0
