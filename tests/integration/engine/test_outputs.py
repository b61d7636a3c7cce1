"""Outputs that PostgreSQL or a reader would choke on: each comes to its own end, and none harms its neighbours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest

from rayloom.serve.client import Client
from tests.integration.engine.silence import Server
from tests.integration.instance import FAULTS, Instance
from tests.integration.runs import Run, echo, python, step

NEIGHBOURS = [echo(f"neighbour{i}", i) for i in range(40)]
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def client(instance: Instance) -> Iterator[Client]:
    with instance.client() as opened:
        yield opened


def expect_unharmed(run: Run) -> None:
    """Every neighbour has its output, from its first attempt."""
    subtasks = run.subtasks()
    for i in range(len(NEIGHBOURS)):
        neighbour = subtasks[f"neighbour{i}"]
        assert (neighbour["status"], neighbour["output"]) == ("COMPLETED", i)
        assert FAULTS or neighbour["attempts"] == 1
    run.expect_sound()


def test_nul_and_lone_surrogates_are_replaced(instance: Instance, client: Client) -> None:
    nul = python("nul", r"import sys; sys.stdout.write('a\0b'); sys.stderr.write('c\0')")
    surrogate = python("surrogate", r"import sys; sys.stdout.buffer.write(b'x\xed\xa0\x80y')")
    with Server(json.dumps({"nul": "a\0b", "k\0": 1}).encode()) as server:
        fetched = step("fetched", "http.request", {"url": server.url})
        run = Run.submit(instance, client, [*NEIGHBOURS[:20], nul, surrogate, fetched, *NEIGHBOURS[20:]])
        run.completed()
    output = run.subtask("nul")["output"]
    assert (output["stdout"], output["stderr"]) == (f"a{REPLACEMENT}b", f"c{REPLACEMENT}")
    text = run.subtask("surrogate")["output"]["stdout"]
    assert (text[0], text[-1], set(text[1:-1])) == ("x", "y", {REPLACEMENT})
    assert run.subtask("fetched")["output"]["json"] == {"nul": f"a{REPLACEMENT}b", f"k{REPLACEMENT}": 1}
    lines = [line for page in client.logs(run.task_id, {"limit": 1000}) for line in page["items"]]  # type: ignore[union-attr]
    assert "\0" not in json.dumps(lines, ensure_ascii=False)
    expect_unharmed(run)


def test_what_is_nested_too_deep_blocks_itself_alone(instance: Instance, client: Client) -> None:
    with Server(b"[" * 500 + b"]" * 500) as server:
        deep = step("deep", "http.request", {"url": server.url})
        run = Run.submit(instance, client, [*NEIGHBOURS[:20], deep, *NEIGHBOURS[20:]])
        assert run.finished()["status"] == "FAILED"
    subtask = run.subtask("deep")
    assert (subtask["status"], subtask["error"]["code"]) == ("BLOCKED", "OUTPUT_TOO_DEEP")
    expect_unharmed(run)


@pytest.mark.parametrize("size", [300_000, 5_000_000])
def test_a_large_output_is_given_by_reference(size: int, instance: Instance, client: Client) -> None:
    value = "ä" * (size // 2)
    plan = [*NEIGHBOURS, echo("large", value), echo("length", {"$ref": "large.output"})]
    run = Run.submit(instance, client, plan)
    task = run.completed()
    reference = run.subtask("large")["output"]
    assert set(reference) == {"$blob", "size", "sha256"}
    with instance.http() as http:
        answer = http.get(reference["$blob"].removeprefix("/api/v1"))
    assert answer.json() == value
    assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (reference["size"], reference["sha256"])
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    # It flows on whole to whoever refers to it, and is in no list.
    assert run.subtask("length")["output"]["sha256"] == reference["sha256"]
    with instance.http() as http:
        result = http.get(task["result"]["$blob"].removeprefix("/api/v1"))
    assert result.json()["length"] == value
    assert hashlib.sha256(result.content).hexdigest() == task["result"]["sha256"]
    assert len(json.dumps(task)) < 256 * 1024
    expect_unharmed(run)
