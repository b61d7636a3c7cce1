"""Cancelling: what runs is stopped within two seconds of the 202, what waits never begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from rayloom.serve.client import Client
from tests.integration.engine.silence import Server
from tests.integration.instance import Instance
from tests.integration.processes import Process
from tests.integration.runs import Run, echo, python, sleep, step
from tests.integration.waiting import wait_until

WITHIN_S = 2.0
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


def cancel(http: httpx2.Client, run: Run) -> float:
    """Cancel it; when the 202 came (monotonic seconds)."""
    answer = http.post(f"/tasks/{run.task_id}/cancel")
    answered_at = time.monotonic()
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "CANCELLED"
    return answered_at


def expect_stopped(answered_at: float, look: Callable[[], list[Process]]) -> None:
    """``look`` must find nothing two seconds after the 202."""
    wait_until(lambda: not look(), within_s=answered_at + WITHIN_S - time.monotonic(), every_s=0.02, what=look)


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
    answered_at = cancel(http, run)
    expect_stopped(answered_at, lambda: [each for each in inside if each.is_alive])
    expect_stopped(answered_at, lambda: instance.processes(f"ray::{run.task_id}"))
    expect_cancelled(run, {"endless": "RUNNING", "after": "READY"})


def test_a_request_that_nobody_answers(instance: Instance, client: Client, http: httpx2.Client) -> None:
    with Server() as server:
        run = Run.submit(instance, client, [step("ask", "http.request", {"url": server.url})])
        wait_until(server.connected.is_set, what=run.details)
        assert not server.closed.is_set()
        answered_at = cancel(http, run)
        wait_until(server.closed.is_set)
        assert server.closed_at - answered_at < WITHIN_S
    expect_stopped(answered_at, lambda: instance.processes(f"ray::{run.task_id}"))
    expect_cancelled(run, {"ask": "RUNNING"})


def test_what_sleeps(instance: Instance, client: Client, http: httpx2.Client) -> None:
    run = Run.submit(instance, client, [sleep(f"s{i}", 3600) for i in range(4)])
    wait_until(lambda: len(instance.processes(f"ray::{run.task_id}")) == 4, what=run.details)
    expect_stopped(cancel(http, run), lambda: instance.processes(f"ray::{run.task_id}"))
    expect_cancelled(run, {f"s{i}": "RUNNING" for i in range(4)})


def test_what_waits_in_the_queue_never_begins(instance: Instance, client: Client, http: httpx2.Client) -> None:
    # Each takes a whole CPU, and there are as many as this machine could ever have.
    hold = Run.submit(
        instance, client, [sleep(f"h{i}", 3600, resources={"num_cpus": 1}) for i in range(64)], priority=10
    )
    wait_until(lambda: hold.progress()["running"] > 0, what=hold.progress)
    run = Run.submit(instance, client, [sleep("later", 1, resources={"num_cpus": 1})], priority=1)
    assert run.until("later", "QUEUED", "RUNNING")["status"] == "QUEUED"
    cancel(http, run)
    expect_cancelled(run, {"later": "QUEUED"})
    expect_stopped(cancel(http, hold), lambda: instance.processes(f"ray::{hold.task_id}"))
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
        answer = http.post(f"/tasks/{run.task_id}/cancel")
        assert answer.status_code == 409
        assert answer.headers["content-type"].startswith("application/problem+json")
    stopped = Run.submit(instance, client, [sleep("a", 3600)])
    cancel(http, stopped)
    cancel(http, stopped)
    assert http.post("/tasks/01234567-89ab-7def-8123-456789abcdef/cancel").status_code == 404
