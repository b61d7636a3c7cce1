"""Dead letters on a whole rayloom: a thousand of three causes, retried by cause; retries and forks of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import Client
from tests.integration.instance import Instance
from tests.integration.runs import Run, echo, step
from tests.integration.waiting import wait_until

LETTERS = "/api/v1/dead-letters"


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def fails(id_: str, kind: str, then: Json, *after: str) -> JsonObject:
    """A subtask that fails its only attempt, and would succeed at the next."""
    return step(id_, "core.fail", {"times": 1, "kind": kind, "then": then}, *after, max_retries=0)


def causes(client: Client, task_id: str) -> dict[str, Any]:
    """The open letters of a task, grouped, by the code of their errors."""
    page: Any = client.get(LETTERS, {"group": "fingerprint", "task_id": task_id})
    return {group["sample"]["error"]["code"]: group for group in page["items"]}


@pytest.mark.timeout(600)
def test_a_thousand_letters_of_three_causes_are_retried_by_cause(instance: Instance, client: Client) -> None:
    plan = [echo("source", {"x": 1})]
    for n in range(334):
        plan.append(fails(f"user-{n}", "user", n))
        if n < 333:
            plan.append(fails(f"transient-{n}", "transient", n))
            plan.append(echo(f"missing-{n}", {"$ref": f"source.output.y{n}"}))
    run = Run.submit(instance, client, plan)
    assert run.finished(within_s=400)["status"] == "FAILED"
    assert run.progress()["blocked"] == 1000
    found = causes(client, run.task_id)
    assert {code: group["count"] for code, group in found.items()} == {
        "DRILL_USER": 334, "DRILL_TRANSIENT": 333, "REFERENCE_MISSING": 333,
    }  # fmt: skip
    for group in found.values():
        answer = client.post(
            f"{LETTERS}/retry", {"filter": {"fingerprint": group["fingerprint"], "task_id": run.task_id}}
        )
        assert answer == {"matched": group["count"], "accepted": group["count"]}
    # What a second attempt helps completes; the rest comes back as the same cause.
    assert run.finished(within_s=400)["status"] == "FAILED"
    left = causes(client, run.task_id)
    assert {code: group["count"] for code, group in left.items()} == {"REFERENCE_MISSING": 333}
    assert left["REFERENCE_MISSING"]["fingerprint"] == found["REFERENCE_MISSING"]["fingerprint"]
    assert run.progress()["completed"] == 668
    assert len(run.subtask("source")["attempts"]) == 1
    # One is mended by another input, the others are put away.
    sample = left["REFERENCE_MISSING"]["sample"]
    client.post(f"{LETTERS}/{sample['id']}/retry", {"input": {"value": {"$ref": "source.output.x"}}})
    assert run.until(sample["subtask"], "COMPLETED")["output"] == 1
    run.finished()
    answer = client.post(f"{LETTERS}/discard", {"filter": {"task_id": run.task_id}})
    assert answer == {"matched": 332, "accepted": 332}
    assert causes(client, run.task_id) == {}
    run.expect_sound()


def test_a_retry_with_another_input_completes_the_task_and_what_was_skipped(instance: Instance, client: Client) -> None:
    plan = [
        echo("source", {"x": 7}),
        echo("bad", {"$ref": "source.output.nothing"}),
        echo("after", "${bad.output}"),
        echo("beside", 1, "source"),
        echo("both", ["${after.output}"], "beside"),
    ]
    run = Run.submit(instance, client, plan)
    assert run.finished()["status"] == "FAILED"
    assert {id_: each["status"] for id_, each in run.subtasks().items()} == {
        "source": "COMPLETED", "bad": "BLOCKED", "after": "SKIPPED", "beside": "COMPLETED", "both": "SKIPPED",
    }  # fmt: skip
    (letter,) = instance.json("dead-letters", "list", "--task", run.task_id)["items"]
    instance.rayloom("dead-letters", "retry", letter["id"], "--input", '{"value": "${source.output.x}"}')
    assert run.completed()["result"] == ["7"]
    assert {id_: each["attempts"] for id_, each in run.subtasks().items()} == {
        "source": 1, "bad": 2, "after": 1, "beside": 1, "both": 1,
    }  # fmt: skip
    assert instance.json("dead-letters", "show", letter["id"])["status"] == "retried"
    run.expect_sound()


def test_a_task_is_retried_and_forked_from_the_command_line(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [echo("a", 1), fails("b", "user", 2), echo("c", ["${a.output}", "${b.output}"])])
    assert run.finished()["status"] == "FAILED"
    assert "FAILED -> PROCESSING" in instance.rayloom("retry", run.task_id, "--watch")
    assert run.completed()["result"] == ["1", "2"]
    forked = instance.rayloom(
        "fork", run.task_id, "--from", "b", "--input", 'b={"times": 0, "kind": "user", "then": 3}'
    )
    fork = Run(instance, client, forked.strip())
    assert fork.completed()["result"] == ["1", "3"]
    assert fork.details()["forked_from"] == run.task_id
    assert {id_: each["attempts"] for id_, each in fork.subtasks().items()} == {"a": 0, "b": 1, "c": 1}
    for each in (run, fork):
        each.expect_sound()


def test_the_stream_tells_of_letters(instance: Instance, client: Client) -> None:
    run = Run.submit(instance, client, [fails("told", "user", 1)])
    run.finished()

    def told() -> bool:
        with Redis.from_url(instance.redis_url) as redis:
            entries: Any = redis.xrange("rayloom:dead-letters")
        return any(fields[b"task_id"].decode() == run.task_id for _, fields in entries)

    wait_until(told)
