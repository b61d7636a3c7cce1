"""Subtasks, outputs and traces."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from rayloom.dag.values import Json, JsonObject
from tests.integration.serve.world import DIAMOND, World, one

SUBTASKS: list[Json] = [{"id": f"s{n}", "type": "TOOL", "tool": "core.noop"} for n in range(1203)]
WIDE: JsonObject = {"subtasks": SUBTASKS}


async def test_subtasks_are_paged_in_plan_order_also_beyond_the_first_thousand(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": WIDE})
    shown = await me.get(f"/tasks/{task_id}")
    assert len(shown["subtasks"]) == 1000
    rest = await me.get(f"/tasks/{task_id}/subtasks", limit=500, cursor=shown["subtasks_next_cursor"])
    assert [item["id"] for item in shown["subtasks"] + rest["items"]] == [f"s{n}" for n in range(1203)]
    assert rest["next_cursor"] is None
    page = await me.get(f"/tasks/{task_id}/subtasks", limit=2)
    assert page["items"] == shown["subtasks"][:2]
    assert (await me.get(f"/tasks/{task_id}/subtasks", status="COMPLETED"))["items"] == []


async def test_one_subtask_has_its_input_and_attempts(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    [first] = await world.claimed(task_id)
    running = await me.get(f"/tasks/{task_id}/subtasks/a")
    assert [attempt["status"] for attempt in running["attempts"]] == ["RUNNING"]
    await world.end([first], lambda _: 7, stdout="printed")
    shown = await me.get(f"/tasks/{task_id}/subtasks/a")
    assert shown["input"] == {"value": 1}
    assert shown["output"] == 7
    [attempt] = shown["attempts"]
    assert attempt["attempt"] == 1
    assert attempt["status"] == "COMPLETED"
    assert attempt["stdout"] == "printed"
    assert (await me.get(f"/tasks/{task_id}/subtasks/b"))["attempts"] == []
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/nothing")).status_code == 404


async def test_null_is_an_output(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await world.run(task_id, lambda _: None)
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "COMPLETED"
    assert shown["subtasks"][0]["output"] is None
    answer = await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/only/output")
    assert answer.content == b"null"


async def test_a_large_output_is_given_by_reference_and_served_as_a_file(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one(id="big.one")})
    large: JsonObject = {"text": "<script>" * 50_000}
    await world.run(task_id, lambda _: large)
    shown = await me.get(f"/tasks/{task_id}")
    reference = shown["subtasks"][0]["output"]
    assert set(reference) == {"$blob", "size", "sha256"}
    assert shown["result"]["$blob"] == reference["$blob"]
    assert reference["sha256"] == hashlib.sha256(orjson.dumps(large)).hexdigest()
    assert (await me.get(f"/tasks/{task_id}/subtasks/big.one"))["output"] == reference
    answer = await me.http.get(reference["$blob"])
    assert answer.json() == large
    assert answer.headers["content-disposition"] == 'attachment; filename="big.one.json"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(len(answer.content))


async def test_an_output_that_is_not_there_yet_is_404(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/only/output")).status_code == 404


async def test_a_page_does_not_outgrow_memory(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("rayloom.db.reads.PAGE_INLINE_BYTES", 5000)
    me = await world.user()
    task_id = await me.submit({"plan": {"subtasks": SUBTASKS[:5]}})
    await world.run(task_id, lambda item: "x" * 2000 if item.key != "s4" else "small")
    outputs = [item["output"] for item in (await me.get(f"/tasks/{task_id}"))["subtasks"]]
    assert ["$blob" in output for output in outputs] == [False, False, True, True, False]


async def test_a_trace_has_the_spans_of_every_part(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    await world.run(task_id)
    trace = await me.get(f"/tasks/{task_id}/trace")
    assert trace["task_id"] == task_id
    assert len(trace["trace_id"]) == 32
    spans = trace["spans"]
    by_id = {span["span_id"]: span for span in spans}
    assert len(by_id) == len(spans)
    kinds = [span["kind"] for span in spans]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "task": 1, "parse": 1, "split": 1, "queue": 4, "attempt": 4, "phase": 12, "tool": 4,
    }  # fmt: skip
    [root] = [span for span in spans if span["parent_id"] is None]
    assert root["kind"] == "task"
    for span in spans:
        assert span["finished_at"] >= span["started_at"]
        assert span["parent_id"] is None or span["parent_id"] in by_id
        if span["kind"] == "tool":
            parent = by_id[span["parent_id"]]
            assert parent["name"] == "EXECUTING"
            assert by_id[parent["parent_id"]]["kind"] == "attempt"
    assert trace == await me.get(f"/tasks/{task_id}/trace")


async def test_a_trace_of_what_goes_on_has_open_spans(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await world.claimed(task_id)
    spans = (await me.get(f"/tasks/{task_id}/trace"))["spans"]
    assert [span["kind"] for span in spans if span["finished_at"] is None] == ["task", "attempt"]
    assert all(span["duration_ms"] is None for span in spans if span["finished_at"] is None)


async def test_traces_are_exported(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    [first] = await world.claimed(task_id)
    await world.fail(first)
    spans = (await me.get(f"/tasks/{task_id}/trace"))["spans"]
    exported = await me.get(f"/tasks/{task_id}/trace", format="otlp")
    [resource] = exported["resourceSpans"]
    sent = resource["scopeSpans"][0]["spans"]
    assert [span["spanId"] for span in sent] == [span["span_id"] for span in spans]
    assert all(int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"]) for span in sent)
    assert [span["name"] for span in sent if span["status"]["code"] == 2] == [spans[0]["name"], "a"]
    drawn = (await me.get(f"/tasks/{task_id}/trace", format="chrome"))["traceEvents"]
    assert len([event for event in drawn if event["ph"] == "X"]) == len(spans)
    bad = await me.http.get(f"/api/v1/tasks/{task_id}/trace", params={"format": "svg"})
    assert bad.json()["errors"][0]["pointer"] == "/query/format"
