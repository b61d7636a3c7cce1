"""The first story of a user: a diamond with a tail goes in over HTTP; events, result, logs and trace come out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.integration.instance import Instance
from tests.integration.runs import Run, echo, expect_order, python, step

PLAN = [
    echo("numbers", [3, 1, 2]),
    step("largest", "json.query", {"data": {"$ref": "numbers.output"}, "query": "max(@)"}),
    step("sorted", "json.query", {"data": {"$ref": "numbers.output"}, "query": "sort(@)"}),
    python("summed", "print(sum([3, 1, 2]), end='')", "numbers"),
    step(
        "joined",
        "text.template",
        {
            "template": "{{ largest }} of {{ sorted | join(' < ') }}, {{ sum }} in all",
            "values": {
                "largest": {"$ref": "largest.output.result"},
                "sorted": {"$ref": "sorted.output.result"},
                "sum": {"$ref": "summed.output.stdout"},
            },
        },
    ),
    step("saved", "files.write", {"path": "report.txt", "content": "${joined.output.text}"}),
    step("read", "files.read", {"path": "report.txt"}, "saved"),
]
REPORT = "3 of 1 < 2 < 3, 6 in all"
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture(scope="module")
def http(instance: Instance) -> Iterator[httpx2.Client]:
    with instance.http() as client:
        yield client


@pytest.fixture(scope="module")
def events(instance: Instance, http: httpx2.Client) -> list[tuple[str, str, Any]]:
    """Everything that the stream of the story's task says, from its submission to its close: id, name, data."""
    body = {"plan": {"subtasks": PLAN}, "title": "Diamond", "priority": 7, "labels": {"story": "1"}}
    accepted = http.post("/tasks", json=body)
    assert accepted.status_code == 202
    task_id = accepted.json()["task_id"]
    assert UUID7.fullmatch(task_id)
    assert accepted.headers["location"] == f"/api/v1/tasks/{task_id}"
    return list(stream(http, task_id))


@pytest.fixture(scope="module")
def task_id(events: list[tuple[str, str, Any]]) -> str:
    return str(events[0][2]["task_id"])


def stream(http: httpx2.Client, task_id: str, after: str = "") -> Iterator[tuple[str, str, Any]]:
    """Server-sent events until the server closes the stream."""
    headers = {"Last-Event-ID": after} if after else {}
    with http.stream("GET", f"/tasks/{task_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for event in httpx2.EventSource(response):
            if event.data:
                yield event.id, event.event, json.loads(event.data)


def test_events_tell_every_transition_and_close(events: list[tuple[str, str, Any]], task_id: str) -> None:
    shape = {"id", "at", "task_id", "subtask", "from", "to", "phase", "attempt", "reason"}
    assert all(set(data) == shape for _, _, data in events)
    assert all(TIME.fullmatch(data["at"]) for _, _, data in events)
    assert {data["task_id"] for _, _, data in events} == {task_id}
    numbers = [int(id_) for id_, _, _ in events]
    assert numbers == sorted(set(numbers)) == [data["id"] for _, _, data in events]
    of_task = [data["to"] for _, name, data in events if name == "task"]
    assert of_task == ["PENDING", "SPLITTING", "READY", "PROCESSING", "COMPLETED"]
    assert events[-1][1:2] == ("task",)
    for subtask in PLAN:
        steps = [data["to"] for _, name, data in events if name == "subtask" and data["subtask"] == subtask["id"]]
        assert [state for state, _ in itertools.groupby(steps)] == ["READY", "QUEUED", "RUNNING", "COMPLETED"]


def test_a_stream_resumes_after_the_last_event_seen(
    events: list[tuple[str, str, Any]], task_id: str, http: httpx2.Client
) -> None:
    middle = len(events) // 2
    assert list(stream(http, task_id, after=events[middle][0])) == events[middle + 1 :]
    assert list(stream(http, task_id)) == events


def test_details_and_result(task_id: str, http: httpx2.Client) -> None:
    task = http.get(f"/tasks/{task_id}").json()
    expected = {
        "task_id": task_id,
        "title": "Diamond",
        "prompt": None,
        "status": "COMPLETED",
        "priority": 7,
        "error": None,
    }
    assert {name: task[name] for name in expected} == expected
    assert task["result"] == {"content": REPORT}
    assert task["progress"] == {
        "total": 7, "completed": 7, "running": 0, "queued": 0, "ready": 0, "pending": 0, "awaiting_approval": 0,
        "failed": 0, "blocked": 0, "skipped": 0, "cancelled": 0, "percent": 100.0,
    }  # fmt: skip
    assert set(task["usage"]) == {"tokens", "cost_usd"}
    assert all(TIME.fullmatch(task[name]) for name in ("created_at", "started_at", "finished_at"))
    assert task["subtasks_next_cursor"] is None
    by_id = {subtask["id"]: subtask for subtask in task["subtasks"]}
    assert list(by_id) == [subtask["id"] for subtask in PLAN]
    shape = {
        "id", "sub_task_id", "name", "type", "tool", "status", "phase", "depends_on", "attempts", "worker_id",
        "queued_at", "started_at", "finished_at", "duration_ms", "tokens_used", "output", "error",
    }  # fmt: skip
    for subtask in by_id.values():
        assert set(subtask) == shape
        assert UUID7.fullmatch(subtask["sub_task_id"])
        assert (subtask["status"], subtask["phase"], subtask["attempts"]) == ("COMPLETED", None, 1)
        assert subtask["queued_at"] <= subtask["started_at"] <= subtask["finished_at"]
    # A reference is a dependency, whether it was written down or not.
    assert sorted(by_id["joined"]["depends_on"]) == ["largest", "sorted", "summed"]
    assert by_id["joined"]["output"] == {"text": REPORT}
    expect_order(by_id)


def test_one_subtask_shows_its_input_and_attempts(task_id: str, http: httpx2.Client) -> None:
    subtask = http.get(f"/tasks/{task_id}/subtasks/summed").json()
    assert subtask["input"] == {"code": "print(sum([3, 1, 2]), end='')"}
    (attempt,) = subtask["attempts"]
    assert (attempt["attempt"], attempt["status"], attempt["stdout"], attempt["error"]) == (1, "COMPLETED", "6", None)
    assert http.get(f"/tasks/{task_id}/subtasks/nobody").status_code == 404


def test_lists_show_it(task_id: str, http: httpx2.Client) -> None:
    found = http.get("/tasks", params={"status": "COMPLETED", "priority": 7, "q": "diamond"}).json()
    assert task_id in {item["task_id"] for item in found["items"]}
    assert task_id not in {item["task_id"] for item in http.get("/tasks", params={"status": "FAILED"}).json()["items"]}


def test_the_log_tells_the_whole_chain(task_id: str, http: httpx2.Client) -> None:
    lines = http.get(f"/tasks/{task_id}/logs", params={"limit": 1000}).json()["items"]
    assert all(
        set(line) == {"id", "at", "level", "stream", "subtask", "attempt", "message", "fields"} for line in lines
    )
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert {line["subtask"] for line in lines} == {None, *(subtask["id"] for subtask in PLAN)}
    stdout = http.get(f"/tasks/{task_id}/logs", params={"stream": "stdout"}).json()["items"]
    assert [(line["subtask"], line["attempt"], line["message"]) for line in stdout] == [("summed", 1, "6")]
    with http.stream("GET", f"/tasks/{task_id}/logs", params={"follow": "true"}) as response:
        followed = [json.loads(event.data) for event in httpx2.EventSource(response) if event.event == "log"]
    assert followed == lines


def test_the_trace_holds_every_wait_phase_and_call(task_id: str, http: httpx2.Client) -> None:
    trace = http.get(f"/tasks/{task_id}/trace").json()
    assert (set(trace), trace["task_id"]) == ({"trace_id", "task_id", "spans"}, task_id)
    spans = trace["spans"]
    shape = {
        "span_id", "parent_id", "name", "kind", "subtask", "attempt", "started_at", "finished_at", "duration_ms",
        "status", "attributes",
    }  # fmt: skip
    assert all(set(span) == shape for span in spans)
    by_id = {span["span_id"]: span for span in spans}
    assert len(by_id) == len(spans)
    (root,) = [span for span in spans if span["parent_id"] is None]
    assert root["kind"] == "task"
    assert {"parse", "split"} <= {span["kind"] for span in spans}
    for subtask in PLAN:
        mine = [span for span in spans if span["subtask"] == subtask["id"]]
        (attempt,) = [span for span in mine if span["kind"] == "attempt"]
        phases = [span for span in mine if span["kind"] == "phase"]
        assert [span["name"] for span in phases] == ["PREPARE_ENV", "EXECUTING", "POST_PROCESS"]
        assert {span["parent_id"] for span in phases} == {attempt["span_id"]}
        (call,) = [span for span in mine if span["kind"] == "tool"]
        assert (call["name"], by_id[call["parent_id"]]["name"]) == (subtask["tool"], "EXECUTING")
        assert [span["kind"] for span in mine].count("queue") == 1
    assert {span["status"] for span in spans} == {"ok"}


def test_the_trace_in_the_forms_of_others(task_id: str, http: httpx2.Client) -> None:
    spans = http.get(f"/tasks/{task_id}/trace").json()["spans"]
    (resource,) = http.get(f"/tasks/{task_id}/trace", params={"format": "otlp"}).json()["resourceSpans"]
    otlp = resource["scopeSpans"][0]["spans"]
    assert [span["spanId"] for span in otlp] == [span["span_id"] for span in spans]
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in otlp)
    chrome = http.get(f"/tasks/{task_id}/trace", params={"format": "chrome"}).json()["traceEvents"]
    assert [event["name"] for event in chrome if event["ph"] == "X"] == [span["name"] for span in spans]
    assert http.get(f"/tasks/{task_id}/trace", params={"format": "xml"}).status_code == 422


def test_what_was_recorded_is_sound(instance: Instance, task_id: str) -> None:
    with instance.client() as client:
        Run(instance, client, task_id).expect_sound()


def test_another_user_sees_none_of_it(instance: Instance, task_id: str, http: httpx2.Client) -> None:
    other = http.post("/keys", json={"user": f"other-{task_id}", "role": "user"}).json()["key"]
    with instance.http(other) as stranger:
        for path in ("", "/logs", "/trace", "/events", "/subtasks", "/subtasks/read", "/subtasks/read/output"):
            assert stranger.get(f"/tasks/{task_id}{path}").status_code == 404
        assert stranger.post(f"/tasks/{task_id}/cancel").status_code == 404
        assert stranger.get("/tasks").json()["items"] == []


def test_a_prompt_becomes_a_plan_and_runs(http: httpx2.Client) -> None:
    prompt = '1. @core.echo {"value": "one"}\n2. then @core.echo {"value": "two"}'
    task_id = http.post("/tasks", json={"prompt": prompt}).json()["task_id"]
    told = list(stream(http, task_id))
    assert [data["to"] for _, name, data in told if name == "task"][-1] == "COMPLETED", told
    task = http.get(f"/tasks/{task_id}").json()
    assert (task["prompt"], task["result"]) == (prompt, "two")
    assert {span["kind"] for span in http.get(f"/tasks/{task_id}/trace").json()["spans"]} >= {"parse", "split"}
