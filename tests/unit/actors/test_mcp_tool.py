"""A tool of an MCP server in an attempt: the call, what is said meanwhile, and how it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rayloom.actors.mcp_tool import McpTool
from rayloom.actors.mcp_view import changed, shown
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.mcp import CallLine, McpAnswer, McpCall, McpServer
from rayloom.dag.ports import RegisteredTool
from tests.unit.tools.context import KeptLog, make_context

TOOL = RegisteredTool(
    name="demo.a_b",
    type="MCP",
    description="",
    version="1",
    schema={"type": "object"},
    output_schema=None,
    endpoint="mcp:demo/a/b",
    config={"hints": {"readOnlyHint": True}},
    resources={"CPU": 0.25},
    lane="shared",
    permission_level="read",
    is_active=True,
)


class Caller:
    """A host with one call that ends when the test says so."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[McpAnswer] = asyncio.get_running_loop().create_future()
        self.calls: list[tuple[McpCall, bool, bool]] = []
        self.cancelled: list[tuple[str, str]] = []
        self.said: asyncio.Queue[Sequence[CallLine]] = asyncio.Queue()
        self.asked: list[int] = []
        self.begun, self.asked_again = asyncio.Event(), asyncio.Event()

    async def call(self, call: McpCall, *, structured: bool, repeatable: bool, within_s: float) -> McpAnswer:
        self.calls.append((call, structured, repeatable))
        self.begun.set()
        return await self.answer

    async def lines(self, server: str, call_id: str, after: int) -> Sequence[CallLine]:
        self.asked.append(after)
        if len(self.asked) == 2:
            self.asked_again.set()
        return await self.said.get()

    async def cancel(self, server: str, call_id: str) -> None:
        self.cancelled.append((server, call_id))


async def test_a_call_names_the_server_and_the_tool_as_it_is_named_there() -> None:
    caller, log = Caller(), KeptLog()
    caller.answer.set_result(McpAnswer(output={"n": 1}, lines=(CallLine(message="half", level="WARNING"),)))
    result = await McpTool(TOOL, caller).run({"x": 1}, make_context(log=log))
    assert result.output == {"n": 1}
    [(call, structured, repeatable)] = caller.calls
    assert (call.server, call.tool, call.arguments) == ("demo", "a/b", {"x": 1})
    assert (structured, repeatable) == (False, True)
    assert [message for _, message in log.lines] == ["half"]


async def test_lines_are_told_while_the_call_lasts_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.actors.mcp_tool.FIRST_LINES_S", 0.01)
    monkeypatch.setattr("rayloom.actors.mcp_tool.PAUSE_S", 0.01)
    caller, log = Caller(), KeptLog()
    running = asyncio.create_task(McpTool(TOOL, caller).run({}, make_context(log=log)))
    lines = [CallLine(message=str(number)) for number in range(3)]
    caller.said.put_nowait(lines[:2])
    async with asyncio.timeout(60):
        await caller.asked_again.wait()
    assert caller.asked == [0, 2]
    assert [message for _, message in log.lines] == ["0", "1"]
    caller.answer.set_result(McpAnswer(output=None, lines=lines))
    await running
    assert [message for _, message in log.lines] == ["0", "1", "2"]


async def test_a_call_that_is_stopped_is_stopped_at_the_host() -> None:
    caller = Caller()
    running = asyncio.create_task(McpTool(TOOL, caller).run({}, make_context()))
    async with asyncio.timeout(60):
        await caller.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert caller.cancelled == [("demo", caller.calls[0][0].id)]


async def test_the_error_of_a_call_is_the_error_of_the_tool() -> None:
    caller = Caller()
    caller.answer.set_exception(Transient("MCP_OFFLINE", "not there"))
    with pytest.raises(Transient, match="not there"):
        await McpTool(TOOL, caller).run({}, make_context())
    assert caller.cancelled == []


def test_a_server_is_shown_and_changed_without_its_secrets() -> None:
    server = McpServer(
        name="s",
        transport="http",
        url="http://x/mcp?key=secret",
        headers={"A": "one", "B": "two"},
        auth={"type": "bearer", "token": "three"},
    )
    view = shown(server, None, ["s.a"])
    assert view["headers"] == {"A": "***", "B": "***"}
    assert view["auth"] == {"type": "bearer", "token": "***"}
    assert view["url"] == "http://x/mcp"
    new = changed(server, {"headers": {"A": None, "B": "***", "C": "new"}, "is_active": False})
    assert (new.headers, new.is_active, new.auth) == ({"B": "two", "C": "new"}, False, server.auth)
    # What was shown may be given back.
    assert changed(server, {"auth": view["auth"]}).auth == server.auth
    assert changed(server, {"auth": {"type": "bearer", "token": "four"}}).auth == {"type": "bearer", "token": "four"}
    assert changed(server, {"auth": None}).auth is None
    with pytest.raises(UserError, match="register it again"):
        changed(server, {"url": "http://y/"})
