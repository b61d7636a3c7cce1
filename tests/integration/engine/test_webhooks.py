"""Webhooks of a whole rayloom, and the keys that let a receiver tell a repetition from another request."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest

from rayloom.serve.client import Client
from tests.integration.engine.receiver import Receiver
from tests.integration.instance import Instance
from tests.integration.runs import Run, echo, sleep, step
from tests.integration.waiting import wait_until

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def delivered(run: Run) -> Any:
    """The task's webhook, as soon as it has been delivered."""

    def look() -> Any:
        told = run.details()["webhook"]
        return told if told["status"] == "delivered" else None

    return wait_until(look, what=lambda: run.details()["webhook"])


def test_every_end_is_told_until_it_is_heard(instance: Instance, client: Client) -> None:
    with Receiver(answers=[503]) as receiver:
        fields: Any = {"callback_url": receiver.url, "callback_secret": SECRET}
        run = Run.submit(instance, client, [echo("a", {"n": 1})], labels={"team": "x"}, **fields)
        assert delivered(run)["attempts"] == 2
        assert len({each.headers["webhook-id"] for each in receiver.received}) == 1
        for each in receiver.received:
            signed = f"{each.headers['webhook-id']}.{each.headers['webhook-timestamp']}.".encode() + each.body
            signature = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
            assert each.headers["webhook-signature"] == f"v1,{signature}"
        event = json.loads(receiver.received[-1].body)
        assert (event["type"], event["source"], event["subject"]) == (
            "rayloom.task.completed", instance.url, run.task_id,
        )  # fmt: skip
        assert (event["data"]["result"], event["data"]["labels"]) == ({"n": 1}, {"team": "x"})
        failed = Run.submit(instance, client, [step("a", "core.fail", {"times": 9, "kind": "user"})], **fields)
        delivered(failed)
        event = json.loads(receiver.received[-1].body)
        assert (event["type"], event["data"]["error"]["code"]) == ("rayloom.task.failed", "SUBTASKS_BLOCKED")
        cancelled = Run.submit(instance, client, [sleep("a", 3600)], **fields)
        client.cancel(cancelled.task_id)
        delivered(cancelled)
        assert json.loads(receiver.received[-1].body)["type"] == "rayloom.task.cancelled"
    messages = [line["message"] for page in client.logs(run.task_id) for line in page["items"]]  # type: ignore[union-attr, index, call-overload]
    assert "webhook of COMPLETED, attempt 2: delivered" in messages
    assert SECRET.removeprefix("whsec_") not in instance.last_words()


def test_every_attempt_of_a_request_carries_the_same_key(instance: Instance, client: Client) -> None:
    with Receiver(answers=[503, 503]) as receiver:
        given: Any = {"url": receiver.url, "method": "POST", "json": {"n": 1}}
        run = Run.submit(instance, client, [step("a", "http.request", given), step("b", "http.request", given)])
        run.completed()
        keys = [each.headers["idempotency-key"] for each in receiver.received]
        assert len(keys) == 4
        assert set(keys) == {run.subtask("a")["sub_task_id"], run.subtask("b")["sub_task_id"]}


def test_why_a_subtask_waits(instance: Instance, client: Client) -> None:
    hold = Run.submit(
        instance, client, [sleep(f"h{i}", 3600, resources={"num_cpus": 1}) for i in range(64)], priority=10
    )
    wait_until(lambda: hold.progress()["running"] > 0, what=hold.progress)
    run = Run.submit(
        instance, client,
        [sleep("later", 1, resources={"num_cpus": 1}), echo("last", 1, "later")], priority=1,
    )  # fmt: skip
    run.until("later", "QUEUED")
    answer: Any = client.waiting(run.task_id, "later")
    kinds = [reason["kind"] for reason in answer["reasons"]]
    assert kinds == ["resources", "queue"], answer
    assert "the scheduler can't be asked" not in str(answer)
    answer = client.waiting(run.task_id, "last")
    assert answer["reasons"][0]["detail"] == "1 dependency is not done: later (QUEUED)"
    assert "dependency\t\t1 dependency is not done" in instance.rayloom("show", run.task_id, "last", "--why")
    for each in (run, hold):
        client.cancel(each.task_id)
