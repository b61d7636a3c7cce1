"""MCP servers in a whole rayloom: registered over REST, called in tasks, killed, changed, removed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.mcp_servers import DEMO, DEMO_COMMAND, serving
from tests.integration.ports import free_ports
from tests.integration.runs import Run, step
from tests.integration.waiting import wait_until

TOOLS = {"add", "counts", "die", "environment", "fail", "grow", "report", "slow"}
SECRET = "correct-horse-battery"


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def http(instance: Instance) -> Iterator[httpx2.Client]:
    with instance.http() as opened:
        yield opened


@contextmanager
def registered(http: httpx2.Client, name: str, **fields: Any) -> Iterator[JsonObject]:
    """A server for the length of the block; what the registration answered."""
    answer = http.post("/tools/register", json={"type": "MCP", "name": name, **fields})
    assert answer.status_code == 201, answer.text
    try:
        yield answer.json()
    finally:
        assert http.delete(f"/tools/{name}").status_code == 204


def output(instance: Instance, client: Client, tool: str, input_: JsonObject, **fields: Any) -> Any:
    """What a tool gives in a task."""
    run = Run.submit(instance, client, [step("a", tool, input_, **fields)])
    run.completed()
    return run.subtask("a")["output"]


def health(http: httpx2.Client, tool: str) -> str:
    """How a tool is, as the API shows it."""
    return str(http.get(f"/tools/{tool}").json()["health"])


def test_a_stdio_server_is_registered_listed_and_called(
    instance: Instance, client: Client, http: httpx2.Client
) -> None:
    env = {"API_TOKEN": SECRET}
    with registered(http, "demo", transport="stdio", command=list(DEMO_COMMAND), trusted=True, env=env) as made:
        assert (made["name"], made["type"]) == ("demo", "MCP")
        assert made["tools"] == sorted(f"demo.{name}" for name in TOOLS)
        shown = http.get("/tools/demo.add").json()
        assert (shown["type"], shown["permission_level"], shown["health"]) == ("MCP", "read", "ok")
        assert shown["schema"]["required"] == ["a", "b"]
        assert http.get("/tools/demo.die").json()["permission_level"] == "execute"
        assert output(instance, client, "demo.add", {"a": 2, "b": 3}) == {"result": 5}

        # Nothing of ours is in its environment, and what it was given it may tell nobody.
        variables = output(instance, client, "demo.environment", {})
        assert variables["API_TOKEN"] == "***"
        assert {name for name in variables if name.startswith(("RAY", "AWS", "PG"))} == set()
        assert set(variables) <= {"API_TOKEN", "HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE"}
        server = http.get("/tools/demo").json()
        assert (server["env"], server["health"]) == ({"API_TOKEN": "***"}, "ok")
        [row] = instance.sql("SELECT spec::text || secrets AS kept FROM mcp_servers")
        assert SECRET not in row["kept"]

        again = {"type": "MCP", "name": "demo", "transport": "http", "url": "http://127.0.0.1:1/"}
        assert http.post("/tools/register", json=again).status_code == 409
        assert http.delete("/tools/demo.add").status_code == 409
    assert http.get("/tools/demo.add").status_code == 404
    assert http.get("/tools/demo").status_code == 404


def test_a_confined_server_over_stdio_and_one_over_http(
    instance: Instance, client: Client, http: httpx2.Client, npm_servers: dict[str, str]
) -> None:
    command = [npm_servers["everything"], "stdio"]
    with registered(http, "every", transport="stdio", command=command, env={"API_TOKEN": SECRET}):
        assert output(instance, client, "every.echo", {"message": "hi"}) == "Echo: hi"
        image = output(instance, client, "every.get-tiny-image", {})
        assert [item["type"] for item in image["content"]] == ["text", "image", "text"]
        told = output(instance, client, "every.get-env", {})
        assert SECRET not in told
        assert "RAY" not in told
        assert '"API_TOKEN": "***"' in told
    [port] = free_ports(1)
    with (
        serving(port, npm_servers["everything"], "streamableHttp", PORT=str(port)),
        registered(http, "far", transport="http", url=f"http://127.0.0.1:{port}/mcp"),
    ):
        called = http.post("/tools/far.echo/invoke", json={"input": {"message": "hi"}})
        assert called.json()["output"] == "Echo: hi"
        wrong = http.post("/tools/far.echo/invoke", json={"input": {}})
        assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/input/message")


def test_what_a_tool_says_and_how_it_fails(instance: Instance, client: Client, http: httpx2.Client) -> None:
    with registered(http, "talks", transport="stdio", command=list(DEMO_COMMAND), trusted=True):
        run = Run.submit(instance, client, [step("a", "talks.report", {"steps": 90})])
        run.completed()
        rows = instance.sql("SELECT message FROM log_lines WHERE task_id = $1::uuid ORDER BY id", run.task_id)
        lines = [row["message"] for row in rows]
        assert [line for line in lines if line.startswith("progress")] == [
            f"progress {at} of 90: step {at}" for at in range(1, 91)
        ]
        failed = http.post("/tools/talks.fail/invoke", json={"input": {"reason": "oh"}}).json()
        assert (failed["error"]["code"], failed["error"]["retryable"]) == ("MCP_TOOL_FAILED", False)


def test_a_cancelled_task_is_cancelled_at_the_server(instance: Instance, client: Client, http: httpx2.Client) -> None:
    with registered(http, "slow", transport="stdio", command=list(DEMO_COMMAND), trusted=True):
        run = Run.submit(instance, client, [step("a", "slow.slow", {"seconds": 3600})])
        run.until_executing("a")
        wait_until(lambda: output(instance, client, "slow.counts", {}))
        assert http.post(f"/tasks/{run.task_id}/cancel").status_code == 202
        wait_until(lambda: output(instance, client, "slow.counts", {})["cancelled"] == 1)


def test_a_server_that_is_killed_in_a_call_is_back_for_the_next_attempt(
    instance: Instance, client: Client, http: httpx2.Client
) -> None:
    with registered(http, "dies", transport="stdio", command=list(DEMO_COMMAND), trusted=True):
        first = output(instance, client, "dies.counts", {})
        run = Run.submit(instance, client, [step("a", "dies.slow", {"seconds": 12}, max_retries=3)])
        run.until_executing("a")
        os.kill(first["pid"], signal.SIGKILL)
        run.completed()
        attempts = run.subtask("a")["attempts"]
        assert attempts[0]["error"]["code"] == "MCP_CONNECTION_LOST"
        assert output(instance, client, "dies.counts", {})["pid"] != first["pid"]


def test_changes_of_a_server_are_seen(instance: Instance, client: Client, http: httpx2.Client) -> None:
    [port] = free_ports(1)
    command = (sys.executable, DEMO, "http", str(port))
    with serving(port, *command) as process:  # noqa: SIM117 - the inner one ends when the outer one is long dead
        with registered(http, "grows", transport="http", url=f"http://127.0.0.1:{port}/mcp"):
            output(instance, client, "grows.grow", {"name": "fresh"})
            wait_until(lambda: http.get("/tools/grows.fresh").status_code == 200)
            assert output(instance, client, "grows.fresh", {}) == "fresh"

            # One tool is switched off by itself, all of them with their server.
            assert http.patch("/tools/grows.fresh", json={"is_active": False}).json()["is_active"] is False
            assert http.patch("/tools/grows", json={"is_active": False}).json()["is_active"] is False
            assert http.get("/tools/grows.add").json()["is_active"] is False
            assert http.patch("/tools/grows", json={"is_active": True}).json()["is_active"] is True
            wait_until(lambda: http.get("/tools/grows.add").json()["is_active"])
            assert http.get("/tools/grows.fresh").json()["is_active"] is False

            process.kill()
            wait_until(lambda: health(http, "grows.add") == "offline")
            with serving(port, *command):
                wait_until(lambda: health(http, "grows.add") == "ok")
                assert output(instance, client, "grows.add", {"a": 1, "b": 1}) == {"result": 2}
                # What it has no more is gone.
                wait_until(lambda: http.get("/tools/grows.fresh").status_code == 404)


def test_a_host_that_is_killed_is_back_with_its_servers(
    instance: Instance, client: Client, http: httpx2.Client
) -> None:
    with registered(http, "stays", transport="stdio", command=list(DEMO_COMMAND), trusted=True):
        first = output(instance, client, "stays.counts", {})
        run = Run.submit(instance, client, [step("a", "stays.slow", {"seconds": 12}, max_retries=3)])
        run.until_executing("a")
        # Nothing else in the shared instance uses it.
        os.kill(instance.process("_McpHostActor").pid, signal.SIGKILL)
        run.completed()
        assert output(instance, client, "stays.counts", {})["pid"] != first["pid"]
        # Its children went with it.
        wait_until(lambda: not Path(f"/proc/{first['pid']}").exists())


@pytest.mark.parametrize(
    ("body", "pointer", "said"),
    [
        ({"transport": "http", "url": "http://127.0.0.1:9/mcp"}, "/url", "can't be reached"),
        ({"transport": "http", "url": "http://10.0.0.1/mcp"}, "/url", "not a public address"),
        ({"transport": "stdio", "command": ["/no/such"], "trusted": True}, "/command", "No such file"),
        ({"transport": "stdio", "command": ["/no/such"]}, "/command", "no program"),
        ({"transport": "stdio", "command": ["sh"], "url": "http://x/"}, "/transport", "neither url"),
    ],
)
def test_a_server_that_can_not_be_reached_is_not_registered(
    http: httpx2.Client, body: dict[str, Any], pointer: str, said: str
) -> None:
    answer = http.post("/tools/register", json={"type": "MCP", "name": "no", **body})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert (error["pointer"], said in error["message"]) == (pointer, True), error
    assert http.get("/tools/no").status_code == 404
