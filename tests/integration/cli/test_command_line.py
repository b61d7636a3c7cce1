"""The command line against a real rayloom: a plan from submission to trace, the demonstration, a batch twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.instance import Instance, running

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="module")
def place() -> Iterator[Instance]:
    """As a person starts it: with the demonstration."""
    with running(RAYLOOM_DEMO="1") as started:
        yield started


def test_the_demonstration_writes_its_report(place: Instance) -> None:
    listed = place.json("list")["items"]
    assert listed, place.said()
    task = listed[-1]
    assert (task["title"], task["status"]) == ("rayloom reads its own source code", "COMPLETED")
    said = place.said().splitlines()
    assert any(line.startswith("# rayloom") for line in said)
    assert any("Every import runs downwards" in line or "more lines" in line for line in said)


def test_a_diamond_from_submission_to_trace(place: Instance) -> None:
    plan = str(EXAMPLES / "diamond-with-tail.json")
    said = place.rayloom("submit", "--plan", plan, "--title", "Weather", "--label", "a=b", "--watch")
    assert "PROCESSING -> COMPLETED" in said
    task_id = next(item["task_id"] for item in place.json("list")["items"] if item["title"] == "Weather")
    task = place.json("show", task_id)
    assert task["progress"]["completed"] == 7
    assert task["result"]["path"] == "weather.md"
    summary = next(subtask["output"]["text"] for subtask in task["subtasks"] if subtask["id"] == "summary")
    assert summary.startswith("Between 7.9 and 13.2 °C, 11.2 °C on average. Heavy rain at Airfield, Ridge.")
    spans = place.json("trace", task_id)["spans"]
    assert {span["subtask"] for span in spans if span["kind"] == "attempt"} == {s["id"] for s in task["subtasks"]}
    assert len(place.rayloom("trace", task_id).splitlines()) == len(spans)
    assert place.rayloom("logs", task_id) == place.rayloom("logs", task_id, "-f")
    assert place.rayloom("watch", task_id).count("RUNNING -> COMPLETED") == 7
    assert "resourceSpans" in place.rayloom("trace", task_id, "--format", "otlp")


def test_a_failure_is_exit_3_and_a_refusal_exit_1(place: Instance) -> None:
    failing = {"id": "f", "type": "TOOL", "tool": "core.fail", "input": {"times": 9, "kind": "user"}}
    (place.folder / "failing.json").write_text(json.dumps({"subtasks": [failing]}))
    place.rayloom("submit", "--plan", "failing.json", "--watch", code=3)
    (place.folder / "wrong.json").write_text(json.dumps({"subtasks": [{**failing, "tool": "core.fial"}]}))
    place.rayloom("submit", "--plan", "wrong.json", code=1)


def test_a_batch_runs_once_however_often_it_is_started(place: Instance) -> None:
    arguments = ("batch", str(EXAMPLES / "batch.jsonl"), "--out", "results.jsonl")
    place.rayloom(*arguments)
    out = place.folder / "results.jsonl"
    first = out.read_bytes()
    assert [json.loads(line)["status"] for line in first.splitlines()] == ["COMPLETED"] * 4
    out.write_bytes(first[: len(first) // 2])
    count = len(place.json("list", "--all")["items"])
    place.rayloom(*arguments)
    assert out.read_bytes() == first
    assert len(place.json("list", "--all")["items"]) == count


def test_status_says_that_all_is_well(place: Instance) -> None:
    status = place.json("status")
    assert (status["running"], status["state"], status["serve"]["state"]) == (True, "serving", "ready")
    assert "serve.state\tready" in place.rayloom("status")


def test_tools_and_keys(place: Instance) -> None:
    assert "python.run" in {tool["name"] for tool in place.json("tools")["items"]}
    assert place.rayloom("tools", "invoke", "core.echo", '{"value": "hello"}') == "hello\n"
    made = place.json("keys", "create", "--user", "ann")
    assert made["key"]
    assert made["id"] in {key["id"] for key in place.json("keys")["items"]}
    place.rayloom("keys", "delete", made["id"])
    assert made["id"] not in {key["id"] for key in place.json("keys")["items"]}
