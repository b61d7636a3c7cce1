"""Results that are kept: over REST, with a real Redis and a callee that counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.runs import Run, step


class Callee(ThreadingHTTPServer):
    """Answers every request when it may, and counts them by their path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.seen: list[str] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Answer(BaseHTTPRequestHandler):
    server: Callee

    def do_GET(self) -> None:
        self.server.seen.append(self.path[1:])
        self.server.may_answer.wait(60)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"answer %d" % len(self.server.seen))

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def callee() -> Iterator[Callee]:
    with Callee() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def sources(run: Run) -> dict[str, Any]:
    """Where the result of each subtask came from, as the trace says it."""
    trace: Any = run.client.trace(run.task_id)
    return {span["subtask"]: span["attributes"].get("cache") for span in trace["spans"] if span["kind"] == "tool"}


def test_an_equal_call_is_made_once(instance: Instance, client: Client, callee: Callee) -> None:
    path = uuid7().hex
    get: JsonObject = {"url": callee.url(path), "method": "GET"}
    first = Run.submit(instance, client, [step("a", "http.request", get, cacheable=True)])
    output = first.completed()["subtasks"][0]["output"]
    assert sources(first) == {"a": "made"}
    again = Run.submit(
        instance,
        client,
        [
            step("a", "http.request", {"method": "GET", "url": get["url"]}, cacheable=True),
            step("b", "http.request", get),
        ],
    )
    outputs = {subtask["id"]: subtask["output"] for subtask in again.completed()["subtasks"]}
    assert outputs["a"] == output
    assert outputs["b"]["body"] != output["body"]
    assert sources(again) == {"a": "hit", "b": None}
    assert callee.seen.count(path) == 2


def test_equal_calls_that_come_together_are_made_once(instance: Instance, client: Client, callee: Callee) -> None:
    path = uuid7().hex
    callee.may_answer.clear()
    get: JsonObject = {"url": callee.url(path)}
    calls = [step(f"n{n}", "http.request", get, cacheable=True) for n in range(6)]
    run = Run.submit(instance, client, calls)
    # All that there is room for are in the middle of the same call before it is answered.
    run.until_executing("n0")
    run.until_executing("n1")
    callee.may_answer.set()
    outputs = [subtask["output"]["body"] for subtask in run.completed()["subtasks"]]
    assert len(set(outputs)) == 1
    assert callee.seen.count(path) == 1
    assert sorted(sources(run).values()) == ["hit"] * 5 + ["made"]


def test_nobody_is_given_what_another_user_got(instance: Instance, client: Client, callee: Callee) -> None:
    path = uuid7().hex
    call = step("a", "http.request", {"url": callee.url(path)}, cacheable=True)
    Run.submit(instance, client, [call]).completed()
    with instance.http() as http:
        key = http.post("/keys", json={"user": f"u{path}", "role": "user"}).json()["key"]
    with instance.client(key) as other:
        run = Run.submit(instance, other, [call])
        run.completed()
        assert sources(run) == {"a": "made"}
    assert callee.seen.count(path) == 2
