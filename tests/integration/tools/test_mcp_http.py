"""What goes wrong with one request over HTTP: its caller is told, and the session goes on for all others."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.dag.errors import Bug, RayloomError, Transient, UserError
from rayloom.dag.mcp import McpServer
from rayloom.dag.values import JsonObject
from tests.integration.mcp_servers import DEMO, serving
from tests.integration.ports import free_ports
from tests.integration.tools.mcp_rig import connected, until

RUDE = str(Path(DEMO).with_name("mcp_rude.py"))
MIB = 1024 * 1024
JSON: JsonObject = {"kind": "application/json"}
STREAM: JsonObject = {"kind": "text/event-stream"}


def fault(code: int, message: str) -> JsonObject:
    """An error of JSON-RPC, as the arguments of a call that is answered with it."""
    return {"body": json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}), **JSON}


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    [port] = free_ports(1)
    with serving(port, sys.executable, RUDE, str(port)):
        yield McpServer(name="it", transport="http", url=f"http://127.0.0.1:{port}/mcp")


@pytest.mark.parametrize(
    ("tool", "arguments", "kind", "code", "said"),
    [
        ("drop", {}, Transient, "MCP_CONNECTION_LOST", "disconnected"),
        ("half", {}, Transient, "MCP_CONNECTION_LOST", "peer closed"),
        ("silent", {}, Transient, "MCP_CONNECTION_LOST", "without a response"),
        ("packed", {}, Transient, "MCP_CONNECTION_LOST", "encoding 'gzip'"),
        ("huge", {"bytes": 2 * MIB}, Bug, "TOOL_OUTPUT_INVALID", "more than 1,048,576 bytes"),
        ("status", {"status": 503}, Transient, "MCP_CONNECTION_LOST", "status 503"),
        ("status", {"status": 403}, Transient, "MCP_CONNECTION_LOST", "status 403: it wants to know"),
        ("status", {"status": 413}, UserError, "MCP_CALL_INVALID", "status 413"),
        ("status", {"status": 413, "body": '{"error": "no"}', **JSON}, UserError, "MCP_CALL_INVALID", "status 413"),
        ("status", {"status": 400}, UserError, "MCP_CALL_INVALID", "status 400"),
        ("status", {"status": 400, **fault(-32602, "Session not found")}, UserError, "MCP_CALL_INVALID", "not found"),
        ("status", {"status": 404, **fault(-32601, "no such method")}, UserError, "MCP_CALL_INVALID", "no such method"),
        ("status", {"status": 500, **fault(-32603, "Session not found")}, Transient, "MCP_ERROR", "not found"),
        ("status", {"status": 200, "body": "{}", **JSON}, Bug, "TOOL_OUTPUT_INVALID", "Failed to parse"),
        ("status", {"status": 200, "body": "data: {}\n\n", **STREAM}, Bug, "TOOL_OUTPUT_INVALID", "Failed to parse"),
        ("status", {"status": 200, "body": "x" * 2 * MIB, **STREAM}, Bug, "TOOL_OUTPUT_INVALID", "1048576 byte"),
    ],
)
async def test_a_request_that_fails_is_told_and_the_session_goes_on(
    server: McpServer,
    tool: str,
    arguments: JsonObject,
    kind: type[RayloomError],
    code: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rayloom.tools.mcp.web.BODY_MAX_BYTES", MIB)
    async with connected(server) as rig:
        greeted = await rig.call("well")
        calls = [asyncio.create_task(rig.call(tool, arguments)), *(asyncio.create_task(rig.call("well")) for _ in "ab")]
        with pytest.raises(kind, match=said) as error:
            await calls[0]
        assert error.value.code == code
        assert await asyncio.gather(*calls[1:]) == [greeted, greeted]
        # It is the session of before.
        assert await rig.call("well") == greeted
        assert rig.health == ["ok"]


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 404},
        {"status": 404, **fault(-32001, "Session not found")},
        {"status": 400, **fault(-32000, "Bad Request: No valid session ID provided")},
        {"status": 400, "body": "unknown session"},
    ],
)
async def test_an_answer_that_means_an_unknown_session_greets_the_server_anew(
    server: McpServer, answer: JsonObject
) -> None:
    async with connected(server) as rig:
        greeted = int(str(await rig.call("well")))
        with pytest.raises(Transient) as error:
            await rig.call("status", answer)
        assert error.value.code == "MCP_CONNECTION_LOST"
        await until(lambda: rig.session.health == "ok")
        assert int(str(await rig.call("well"))) > greeted


async def test_a_notification_that_is_never_taken_does_not_silence_the_session(
    server: McpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayloom.tools.mcp.way.TAKEN_S", 1.0)
    async with connected(server) as rig:
        greeted = await rig.call("well")
        with pytest.raises(Transient, match="longer than 1 s"):
            await rig.call("never", timeout_s=1)
        assert await rig.call("well") == greeted


async def test_the_older_transport_is_opened_anew_after_a_request_that_failed() -> None:
    [port] = free_ports(1)
    with serving(port, sys.executable, DEMO, "sse", str(port)):
        async with connected(McpServer(name="it", transport="sse", url=f"http://127.0.0.1:{port}/sse")) as rig:
            first = rig.session.last_error
            assert first == ""
            # Starlette's own limit on the host, which a message must not pass.
            with pytest.raises(Transient) as error:
                await rig.call("add", {"a": 1, "b": "x" * 5 * MIB})
            assert error.value.code == "MCP_CONNECTION_LOST"
            assert await rig.call("add", {"a": 1, "b": 2}) == {"result": 3}
