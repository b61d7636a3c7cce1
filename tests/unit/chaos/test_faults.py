"""The driver of a chaos run hears each 500 of ours, also where a client tries again, and the checker tells of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx2
import pytest

from rayloom.serve.client import Client
from tests.chaos.checker import check
from tests.chaos.faults import ServerFaults
from tests.chaos.record import Circumstances, ServerFault
from tests.unit.chaos.histories import GOOD

PROBLEM = {"type": "about:blank", "title": "Internal Server Error", "status": 500, "detail": "a fault"}


def answering(*answers: httpx2.Response) -> httpx2.MockTransport:
    """A server that gives one after the other."""
    left: Iterator[httpx2.Response] = iter(answers)
    return httpx2.MockTransport(lambda _request: next(left))


def client(faults: ServerFaults, *answers: httpx2.Response) -> Client:
    """A patient one that never really waits."""
    return Client("http://rayloom", "key", patience_s=60, transport=faults.transport(answering(*answers)), pause=int)


def test_each_500_of_ours_is_heard_though_the_client_tried_again() -> None:
    faults = ServerFaults()
    ours = [httpx2.Response(500, json=PROBLEM), httpx2.Response(500, json=PROBLEM | {"detail": "another"})]
    with client(faults, *ours, httpx2.Response(202, json={"task_id": "t"})) as asking:
        assert asking.submit({}).task_id == "t"
    assert faults.seen == (
        ServerFault(method="POST", path="/api/v1/tasks", detail="a fault"),
        ServerFault(method="POST", path="/api/v1/tasks", detail="another"),
    )


@pytest.mark.parametrize(
    "answer", [httpx2.Response(500, text="Internal Server Error"), httpx2.Response(503, json=PROBLEM | {"status": 503})]
)
def test_what_a_proxy_says_and_a_503_are_none(answer: httpx2.Response) -> None:
    faults = ServerFaults()
    with client(faults, answer, httpx2.Response(202, json={"task_id": "t"})) as asking:
        assert asking.submit({}).task_id == "t"
    assert faults.seen == ()


def test_a_500_is_a_violation() -> None:
    fault = ServerFault(method="GET", path="/api/v1/tasks", detail="a fault")
    violations = check(replace(GOOD, circumstances=Circumstances(faults=[fault])))
    assert [(each.rule, each.what) for each in violations] == [("server fault", "500 to GET /api/v1/tasks: a fault")]
