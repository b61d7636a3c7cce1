"""A tool that fails each time: calls stop, nobody's retries are spent, and all goes on by itself once it is back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance, running
from tests.integration.runs import Run, step
from tests.integration.waiting import wait_until

COUNT = 40


class Site:
    """A server that answers 503 until it is ``back``, and counts."""

    def __init__(self) -> None:
        self.back = False
        self.calls = 0
        self.open = 0
        self.open_most = 0
        self.url = ""
        self._lock = threading.Lock()

    @contextmanager
    def answering(self) -> Iterator[int]:
        """One request; the status of its answer."""
        with self._lock:
            self.calls += 1
            self.open += 1
            self.open_most = max(self.open_most, self.open)
        try:
            yield 200 if self.back else 503
        finally:
            with self._lock:
                self.open -= 1


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with site.answering() as status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with running(RAYLOOM_BREAKER_COOLDOWN_S="1", RAYLOOM_BREAKER_COOLDOWN_MAX_S="2") as made:
        yield made


@pytest.fixture
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened
        opened.patch("/api/v1/tools/http.request", {"breaker": "closed"})


def _state(client: Client) -> str:
    tool: Any = client.get("/api/v1/tools/http.request")
    return str(tool["breaker"]["state"])


def _retries(run: Run) -> int:
    rows = run.instance.sql("SELECT sum(retry_count) AS n FROM sub_tasks WHERE parent_id = $1::uuid", run.task_id)
    return int(rows[0]["n"])


def _leased(run: Run) -> bool:
    statement = "SELECT 1 FROM sub_tasks WHERE parent_id = $1::uuid AND incarnation IS NOT NULL"
    return bool(run.instance.sql(statement, run.task_id))


def test_a_tool_that_fails_each_time(instance: Instance, client: Client, site: Site) -> None:
    plan = [step(f"s{n}", "http.request", {"url": site.url}) for n in range(COUNT)]
    run = Run.submit(instance, client, plan)
    wait_until(lambda: _state(client) != "closed", what=run.progress)
    # What was under way comes to its end; then only probes are left, one at a time.
    wait_until(lambda: not _leased(run), what=run.progress)
    called, spent, site.open_most = site.calls, _retries(run), 0
    assert called < COUNT
    wait_until(lambda: site.calls >= called + 3, what=run.progress)
    assert site.open_most == 1
    assert _retries(run) == spent
    site.back = True
    task = run.completed()
    assert task["progress"]["completed"] == COUNT
    assert _state(client) == "closed"
    assert _retries(run) == spent
    run.expect_sound()
    # Who only waited was never claimed: one attempt beside those that failed before, and the probes.
    assert run.attempts().total() == COUNT
    assert sum(count * attempts for attempts, count in run.attempts().items()) < 2 * COUNT + 20


def test_while_it_is_open_a_direct_call_fails_at_once(instance: Instance, client: Client, site: Site) -> None:
    shown = client.patch("/api/v1/tools/http.request", {"breaker": "open"})
    assert shown["breaker"] == {"state": "open", "retry_at": None}
    with instance.http() as http:
        answer = http.post("/tools/http.request/invoke", json={"input": {"url": site.url}})
    assert answer.status_code == 200
    error = answer.json()["error"]
    assert (error["code"], error["class"], error["retryable"]) == ("BREAKER_OPEN", "transient", True)
    assert site.calls == 0
    with instance.http() as http:
        metrics = http.get(f"{instance.url}/metrics").text
    assert 'rayloom_breaker_state{breaker="http.request"} 2.0' in metrics
    assert "open" in instance.rayloom("tools", "breaker", "http.request")
    assert instance.rayloom("tools", "breaker", "http.request", "--close").strip() == "closed"
    site.back = True
    called = client.post("/api/v1/tools/http.request/invoke", {"input": {"url": site.url}})
    assert called["error"] is None


def test_an_alternative_stands_in_for_it(instance: Instance, client: Client, site: Site) -> None:
    site.back = True
    with instance.http() as http:
        wrong = http.patch("/tools/http.fetch_text", json={"alternative": "http.request"})
    # It could do more than what it stands in for.
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/alternative")
    client.patch("/api/v1/tools/http.request", {"alternative": "http.fetch_text", "breaker": "open"})
    try:
        fits = Run.submit(instance, client, [step("a", "http.request", {"url": site.url})])
        assert fits.completed()["result"]["title"] == ""
        spans: Any = client.trace(fits.task_id)
        (call,) = (span for span in spans["spans"] if span["kind"] == "tool")
        assert (call["name"], call["attributes"]["instead_of"]) == ("http.fetch_text", "http.request")
        does_not = Run.submit(instance, client, [step("a", "http.request", {"url": site.url, "method": "POST"})])
        waits = does_not.until("a", "FAILED")
        assert (waits["error"]["code"], site.calls) == ("BREAKER_OPEN", 1)
        assert _retries(does_not) == 0
        client.post(f"/api/v1/tasks/{does_not.task_id}/cancel", {})
    finally:
        client.patch("/api/v1/tools/http.request", {"alternative": None})


def test_a_fallback_is_turned_to_at_once(instance: Instance, client: Client, site: Site) -> None:
    client.patch("/api/v1/tools/http.request", {"breaker": "open"})
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": "plan B"}}
    plan = [step("a", "http.request", {"url": site.url}, on_failure="fallback", fallback=fallback)]
    run = Run.submit(instance, client, plan)
    assert run.completed()["result"] == "plan B"
    assert (site.calls, _retries(run)) == (0, 0)
    shown: Any = client.subtask(run.task_id, "a")
    attempts = [(each["tool"], each["fallback"], each["status"]) for each in shown["attempts"]]
    assert attempts == [("http.request", False, "FAILED"), ("core.echo", True, "COMPLETED")]
    said = "the breaker of http.request is open: the subtask turns to its fallback core.echo at once"
    assert shown["attempts"][0]["error"]["message"] == said
    trace: Any = client.trace(run.task_id)
    first, second = (span["attributes"] for span in trace["spans"] if span["kind"] == "attempt")
    assert (first["error.code"], first["error.message"], second["fallback"]) == ("BREAKER_OPEN", said, True)
    pages: list[Any] = list(client.logs(run.task_id))
    assert [line for page in pages for line in page["items"] if said in line["message"]]
    run.expect_sound()
