"""Cancelling: what runs is stopped within two seconds of the 202, what waits never begins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from rayloom.dag.values import JsonObject
from rayloom.serve.client import Client
from tests.integration.engine.silence import Server
from tests.integration.instance import Instance
from tests.integration.processes import Process
from tests.integration.runs import Run, echo, python, sleep, step
from tests.integration.waiting import GENEROUS_S, wait_until

pytestmark = pytest.mark.timed
WITHIN_S = 2.0
_never = threading.Event()
CHILD = "sleep 86322"
ENDLESS = f"import subprocess\nsubprocess.Popen({CHILD.split()!r})\nwhile True: pass"


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


@pytest.fixture
def http(instance: Instance) -> Iterator[httpx2.Client]:
    with instance.http() as opened:
        yield opened


def post(http: httpx2.Client, path: str) -> httpx2.Response:
    """Its answer; who is told to come again does so (with injected faults the database is away now and then)."""
    while (answer := http.post(path)).status_code == 503:
        assert "retry-after" in answer.headers
    return answer


def cancel(http: httpx2.Client, run: Run) -> float:
    """Cancel it; when the 202 came (monotonic seconds)."""
    answer = post(http, f"/tasks/{run.task_id}/cancel")
    answered_at = time.monotonic()
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "CANCELLED"
    return answered_at


def workers_of(instance: Instance, run: Run, count: int, *, within_s: float = GENEROUS_S) -> list[Process]:
    """The workers that run its attempts, when there are so many."""

    def all_of_them() -> list[Process] | None:
        found = instance.workers(run.task_id)
        return found if len(found) == count else None

    return wait_until(all_of_them, within_s=within_s, every_s=0.5, what=run.progress)


def at_work(workers: list[Process]) -> list[Process]:
    """Those that still do what they did."""
    return [each for each in workers if each.goes_on]


def expect_stopped(answered_at: float, look: Callable[[], list[Process]]) -> None:
    """``look`` must find nothing when it begins two seconds after the 202; how long it takes itself does not count."""
    while True:
        is_last = time.monotonic() >= answered_at + WITHIN_S
        if not (found := look()):
            return
        assert not is_last, found
        _never.wait(0.02)


def expect_cancelled(run: Run, was: dict[str, str]) -> None:
    """The record says so: each subtask came from the status that it had to CANCELLED, and nothing came after."""
    task = run.details()
    assert (task["status"], task["result"]) == ("CANCELLED", None)
    assert task["finished_at"] is not None
    assert {subtask["id"]: subtask["status"] for subtask in task["subtasks"]} == dict.fromkeys(was, "CANCELLED")
    events: list[Any] = [(event.name, event.data) for event in run.client.events(run.task_id)]
    last = {data["subtask"]: (data["from"], data["to"]) for name, data in events if name == "subtask"}
    assert last == {id_: (status, "CANCELLED") for id_, status in was.items()}
    assert (events[-1][0], events[-1][1]["to"]) == ("task", "CANCELLED")
    run.expect_sound()


def test_a_sandbox_in_an_endless_loop(instance: Instance, client: Client, http: httpx2.Client) -> None:
    run = Run.submit(instance, client, [python("endless", ENDLESS), echo("after", 1, "endless")])
    child = wait_until(lambda: instance.processes(CHILD), what=run.details)[0]
    around = {each.pid: each for each in instance.processes()}
    inside = [child]
    while (parent := around.get(inside[-1].parent)) is not None and not parent.title.startswith("ray::"):
        inside.append(parent)
    assert len(inside) > 2, "the loop, and what holds it, run too"
    workers = wait_until(lambda: instance.workers(run.task_id), what=run.details)
    answered_at = cancel(http, run)
    expect_stopped(answered_at, lambda: [each for each in inside if each.is_alive])
    expect_stopped(answered_at, lambda: at_work(workers))
    expect_cancelled(run, {"endless": "RUNNING", "after": "READY"})


def test_a_request_that_nobody_answers(instance: Instance, client: Client, http: httpx2.Client) -> None:
    with Server() as server:
        run = Run.submit(instance, client, [step("ask", "http.request", {"url": server.url})])
        wait_until(server.connected.is_set, what=run.details)
        workers = wait_until(lambda: instance.workers(run.task_id), what=run.details)
        assert not server.closed.is_set()
        answered_at = cancel(http, run)
        wait_until(server.closed.is_set)
        assert server.closed_at - answered_at < WITHIN_S
    expect_stopped(answered_at, lambda: at_work(workers))
    expect_cancelled(run, {"ask": "RUNNING"})


def test_what_sleeps(instance: Instance, client: Client, http: httpx2.Client) -> None:
    run = Run.submit(instance, client, [sleep(f"s{i}", 3600) for i in range(4)])
    workers = workers_of(instance, run, 4)
    expect_stopped(cancel(http, run), lambda: at_work(workers))
    expect_cancelled(run, {f"s{i}": "RUNNING" for i in range(4)})


def test_what_waits_in_the_queue_never_begins(instance: Instance, client: Client, http: httpx2.Client) -> None:
    # Each takes a whole CPU, and there are as many as this machine could ever have.
    hold = Run.submit(
        instance, client, [sleep(f"h{i}", 3600, resources={"num_cpus": 1}) for i in range(64)], priority=10
    )
    wait_until(lambda: hold.progress()["running"] > 0, what=hold.progress)
    workers = workers_of(instance, hold, hold.progress()["running"])
    run = Run.submit(instance, client, [sleep("later", 1, resources={"num_cpus": 1})], priority=1)
    assert run.until("later", "QUEUED", "RUNNING")["status"] == "QUEUED"
    cancel(http, run)
    expect_cancelled(run, {"later": "QUEUED"})
    expect_stopped(cancel(http, hold), lambda: at_work(workers))
    assert hold.status() == "CANCELLED"
    assert run.attempts() == {0: 1}
    assert run.subtask("later")["started_at"] is None
    # The cluster is free again.
    assert Run.submit(instance, client, [echo("next", 1)]).completed()["result"] == 1


def test_cancelling_what_has_ended(instance: Instance, client: Client, http: httpx2.Client) -> None:
    done = Run.submit(instance, client, [echo("a", 1)])
    done.completed()
    failed = Run.submit(instance, client, [step("a", "core.fail", {"times": 9, "kind": "user"})])
    failed.finished()
    for run in (done, failed):
        answer = post(http, f"/tasks/{run.task_id}/cancel")
        assert answer.status_code == 409
        assert answer.headers["content-type"].startswith("application/problem+json")
    stopped = Run.submit(instance, client, [sleep("a", 3600)])
    cancel(http, stopped)
    cancel(http, stopped)
    assert post(http, "/tasks/01234567-89ab-7def-8123-456789abcdef/cancel").status_code == 404


@pytest.mark.long
@pytest.mark.timeout(1_500)
def test_fifty_that_run_at_once(instance: Instance, client: Client, http: httpx2.Client) -> None:
    """Sleeps, requests that nobody answers, and sandboxes in endless loops with children: none is left."""
    small: JsonObject = {"num_cpus": 0.02, "custom": {"sandbox": 0.02}}
    fields: JsonObject = {"resources": small, "timeout_s": 3600}
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(10)]
        # The loops last: they take all CPUs from whatever is still to be started.
        steps = [sleep(f"sleep{i}", 3600, **fields) for i in range(25)]
        steps += [step(f"ask{i}", "http.request", {"url": server.url}, **fields) for i, server in enumerate(servers)]
        loop: JsonObject = {"code": ENDLESS, "limits": {"wall_s": 3600}}
        steps += [step(f"loop{i}", "python.run", loop, **fields) for i in range(15)]
        # A request may take a minute, and so many workers more than that to start: they are to be there before.
        first = Run.submit(instance, client, [sleep(f"first{i}", 3600, **fields) for i in range(len(steps))])
        workers = workers_of(instance, first, len(steps), within_s=900)
        expect_stopped(cancel(http, first), lambda: at_work(workers))
        run = Run.submit(instance, client, [*steps, echo("after", 1, "loop0")])

        def all_run() -> bool:
            return len(instance.processes(CHILD)) == 15 and all(each.connected.is_set() for each in servers)

        workers = workers_of(instance, run, len(steps))
        wait_until(all_run, every_s=0.5, what=run.progress)
        inside = instance.processes(CHILD)
        answer = http.post(f"/tasks/{run.task_id}/cancel")
        answered_at = time.monotonic()
        assert answer.status_code == 202, answer.text
        told = answer.json()
        assert {item["subtask"] for item in told["stopped"]} == {each["id"] for each in steps}
        assert {item["phase"] for item in told["stopped"]} == {"EXECUTING"}
        assert (told["withdrawn"], told["completed"]["count"]) == ({"ready": 1}, 0)
        assert run.progress()["cancelled"] == len(steps) + 1
        expect_stopped(answered_at, lambda: [each for each in inside if each.is_alive])
        expect_stopped(answered_at, lambda: instance.processes(CHILD))
        expect_stopped(answered_at, lambda: at_work(workers))
        for server in servers:
            wait_until(server.closed.is_set)
            assert server.closed_at - answered_at < WITHIN_S
    expect_cancelled(run, {str(each["id"]): "RUNNING" for each in steps} | {"after": "READY"})

    def ended() -> bool:
        lines = [line for page in client.logs(run.task_id, {"limit": 500}) for line in _items(page)]
        return sum("after it was asked to stop" in line["message"] for line in lines) == len(steps)

    wait_until(ended, every_s=0.5)


def _items(page: JsonObject) -> list[Any]:
    items = page["items"]
    assert isinstance(items, list)
    return items
