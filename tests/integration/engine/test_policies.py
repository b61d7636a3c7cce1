"""What follows a failure by policy, and approval, in a whole rayloom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayloom.dag.values import JsonObject
from rayloom.serve.answers import Rejected
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.runs import Run, echo, step
from tests.integration.waiting import wait_until

BAD: JsonObject = {"times": 99, "kind": "user"}


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def test_a_task_goes_on_without_what_is_missing_and_with_its_fallbacks(instance: Instance, client: Client) -> None:
    plan = [
        step("gone", "core.fail", BAD, on_failure="continue"),
        step("stands", "core.fail", BAD, on_failure="default", default={"n": [1, 2]}),
        step("turns", "core.fail", BAD, on_failure="fallback",
             fallback={"tool": "core.echo", "input": {"value": {"$ref": "stands.output.n[1]"}}}),
        echo("end", [
            {"$ref": "gone.output.any[0].path"}, "<${gone.output}>", {"$ref": "stands.output"},
            "${stands.output.n[0]}", {"$ref": "turns.output"},
        ]),
    ]  # fmt: skip
    run = Run.submit(instance, client, plan)
    task = run.completed()
    assert task["missing"] == ["gone", "stands"]
    assert task["result"] == [None, "<null>", {"n": [1, 2]}, "1", 2]
    status = {subtask["id"]: subtask["status"] for subtask in task["subtasks"]}
    assert status == {"gone": "BLOCKED", "stands": "BLOCKED", "turns": "COMPLETED", "end": "COMPLETED"}
    attempts = client.subtask(run.task_id, "turns")["attempts"]
    assert isinstance(attempts, list)
    assert [(each["tool"], each["status"]) for each in attempts if isinstance(each, dict)] == [
        ("core.fail", "FAILED"), ("core.echo", "COMPLETED"),
    ]  # fmt: skip


def test_a_subtask_waits_for_approval_and_runs_when_it_has_it(instance: Instance, client: Client) -> None:
    plan = [echo("a", 1), echo("b", 2, "a", require_approval=True), echo("c", {"$ref": "b.output"})]
    run = Run.submit(instance, client, plan)
    wait_until(lambda: run.progress()["awaiting_approval"] == 1, what=run.progress)
    assert run.status() == "PROCESSING"
    client.approve(run.task_id, subtask="b")
    with pytest.raises(Rejected, match="does not wait for approval"):
        client.approve(run.task_id, subtask="b")
    assert run.completed()["result"] == 2


def test_a_plan_made_from_a_prompt_waits_for_approval(instance: Instance, client: Client) -> None:
    submitted = client.submit({"prompt": "1. core.noop\n2. then core.noop", "require_approval": True})
    run = Run(instance, client, submitted.task_id)
    wait_until(lambda: run.status() == "READY", what=run.details)
    assert run.progress()["pending"] == run.progress()["total"] > 0
    client.approve(run.task_id)
    run.finished()
    other = Run(instance, client, client.submit({"prompt": "core.noop", "require_approval": True}).task_id)
    wait_until(lambda: other.status() == "READY", what=other.details)
    client.reject(other.task_id, "not this one")
    task = other.finished()
    assert (task["status"], task["error"]["code"]) == ("CANCELLED", "REJECTED")
