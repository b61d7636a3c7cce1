"""What fails, how often it is tried again, and what goes on regardless."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import Client
from tests.integration.engine.silence import Server
from tests.integration.instance import Instance
from tests.integration.runs import Run, echo, python, step
from tests.integration.waiting import wait_until

CHILD = "sleep 86321"
ENDLESS = f"import subprocess\nsubprocess.Popen({CHILD.split()!r})\nwhile True: pass"
INITIAL_S = 0.2


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def fail(id_: str, times: int, kind: str, *after: str, **fields: Json) -> JsonObject:
    """A subtask that fails so many attempts."""
    return step(id_, "core.fail", {"times": times, "kind": kind, "then": "fine"}, *after, **fields)


def seconds_between(earlier: Any, later: Any) -> float:
    """From the end of an attempt to the begin of the next."""
    ended, begun = (datetime.fromisoformat(text) for text in (earlier["finished_at"], later["started_at"]))
    return (begun - ended).total_seconds()


@pytest.mark.exact
def test_a_failing_branch_leaves_the_others_alone(instance: Instance, client: Client) -> None:
    plan = [
        echo("source", 1),
        fail("bad", 9, "user", "source"),
        echo("after", 2, "bad"),
        echo("after-that", 3, "after"),
        echo("good", 4, "source"),
        echo("better", 5, "good"),
        echo("both", 6, "better", "after"),
    ]
    run = Run.submit(instance, client, plan)
    task = run.finished()
    assert task["status"] == "FAILED"
    assert task["result"] is None
    assert set(task["error"]) >= {"code", "class", "message", "retryable"}
    assert "bad" in task["error"]["message"]
    status = {subtask["id"]: subtask["status"] for subtask in task["subtasks"]}
    assert status == {
        "source": "COMPLETED", "bad": "BLOCKED", "after": "SKIPPED", "after-that": "SKIPPED", "good": "COMPLETED",
        "better": "COMPLETED", "both": "SKIPPED",
    }  # fmt: skip
    bad = run.subtask("bad")
    # A user error is not retried.
    assert [attempt["status"] for attempt in bad["attempts"]] == ["FAILED"]
    assert (bad["error"]["code"], bad["error"]["class"], bad["error"]["retryable"]) == ("DRILL_USER", "user", False)
    assert bad["error"]["attempt"] == 1
    assert instance.rayloom("show", run.task_id, code=0)
    run.expect_sound()


@pytest.mark.exact
def test_a_transient_failure_is_tried_again_after_a_growing_wait(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [fail("shaky", 2, "transient")])
    assert run.completed()["result"] == "fine"
    attempts = run.subtask("shaky")["attempts"]
    assert [attempt["status"] for attempt in attempts] == ["FAILED", "FAILED", "COMPLETED"]
    waits = [seconds_between(*pair) for pair in itertools.pairwise(attempts)]
    assert waits[0] >= INITIAL_S
    assert waits[1] >= 2 * INITIAL_S
    run.expect_sound()


@pytest.mark.exact
def test_when_attempts_are_spent_the_subtask_is_blocked(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [fail("hopeless", 9, "transient", max_retries=2)])
    task = run.finished()
    (subtask,) = task["subtasks"]
    assert (task["status"], subtask["status"], subtask["attempts"]) == ("FAILED", "BLOCKED", 3)
    assert (subtask["error"]["code"], subtask["error"]["attempt"]) == ("DRILL_TRANSIENT", 3)
    run.expect_sound()


@pytest.mark.exact
def test_a_dead_worker_process_is_a_failed_attempt(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [fail("dies", 1, "crash"), fail("dies-too", 1, "crash", max_retries=0)])
    run.finished()
    dies, dies_too = run.subtask("dies"), run.subtask("dies-too")
    assert (dies["status"], dies["output"]) == ("COMPLETED", "fine")
    assert [attempt["status"] for attempt in dies["attempts"]] == ["FAILED", "COMPLETED"]
    assert dies["attempts"][0]["error"]["code"] == "WORKER_DIED"
    # It spends a retry: without any there is no second attempt.
    assert dies_too["status"] == "BLOCKED"
    assert len(dies_too["attempts"]) == 1
    run.expect_sound()


@pytest.mark.exact
def test_ray_never_runs_an_attempt_again_by_itself(instance: Instance, client: Client) -> None:
    with Server() as server:
        run = Run.submit(instance, client, [step("ask", "http.request", {"url": server.url}, max_retries=0)])
        wait_until(server.connected.is_set, what=run.details)
        (worker,) = wait_until(lambda: instance.workers(run.task_id), what=run.details)
        os.kill(worker.pid, signal.SIGKILL)
        assert run.finished()["status"] == "FAILED"
        assert run.subtask("ask")["error"]["code"] == "WORKER_DIED"
        assert server.asked_count == 1


@pytest.mark.exact
def test_a_timeout_is_retryable_and_counts(instance: Instance, client: Client) -> None:
    plan = [
        fail("slow-once", 1, "hang", timeout_s=5),
        fail("hangs", 9, "hang", timeout_s=2, max_retries=1),
    ]
    run = Run.submit(instance, client, plan)
    workers = wait_until(lambda: instance.workers(run.task_id), what=run.details)
    run.finished()
    once, hangs = run.subtask("slow-once"), run.subtask("hangs")
    assert [attempt["status"] for attempt in once["attempts"]] == ["TIMED_OUT", "COMPLETED"]
    assert hangs["status"] == "BLOCKED"
    assert [attempt["status"] for attempt in hangs["attempts"]] == ["TIMED_OUT", "TIMED_OUT"]
    assert (hangs["error"]["code"], hangs["error"]["retryable"]) == ("TIMED_OUT", True)
    wait_until(lambda: not any(each.goes_on for each in workers))
    run.expect_sound()


@pytest.mark.exact
def test_a_timeout_leaves_no_process_of_a_sandbox(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [python("endless", ENDLESS, timeout_s=10, max_retries=0)])
    child = wait_until(lambda: instance.processes(CHILD), what=lambda: run.subtask("endless"))[0]
    assert run.finished()["status"] == "FAILED"
    assert [attempt["status"] for attempt in run.subtask("endless")["attempts"]] == ["TIMED_OUT"]
    wait_until(lambda: not child.is_alive)
    wait_until(lambda: not instance.processes("bwrap"))
    run.expect_sound()


@pytest.mark.exact
def test_an_input_that_leads_nowhere_is_a_user_error(instance: Instance, client: Client) -> None:
    plan = [echo("a", {"x": 1}), echo("b", {"$ref": "a.output.y.z"})]
    run = Run.submit(instance, client, plan)
    assert run.finished()["status"] == "FAILED"
    subtask = run.subtask("b")
    assert (subtask["status"], subtask["error"]["code"], len(subtask["attempts"])) == (
        "BLOCKED",
        "REFERENCE_MISSING",
        1,
    )
