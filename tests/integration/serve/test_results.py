"""Subtasks, outputs and traces."""

from __future__ import annotations

import hashlib
from typing import Any

from rayloom.dag.values import Json, JsonObject
from tests.integration.serve.world import DIAMOND, Person, World, one

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
    await world.end([first], lambda _: 7, stdout="printed", log="said")
    shown = await me.get(f"/tasks/{task_id}/subtasks/a")
    assert shown["input"] == {"value": 1}
    assert shown["output"] == 7
    [attempt] = shown["attempts"]
    assert attempt["attempt"] == 1
    assert attempt["status"] == "COMPLETED"
    assert (attempt["stdout"], attempt["log"]) == ("printed", "said")
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


async def served(me: Person, reference: JsonObject, filename: str) -> object:
    """What a reference leads to, which must be just the bytes that it tells of."""
    assert set(reference) == {"$blob", "size", "sha256"}
    answer = await me.http.get(str(reference["$blob"]))
    assert answer.headers["content-disposition"] == f'attachment; filename="{filename}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(reference["size"])
    assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (reference["size"], reference["sha256"])
    document: object = answer.json()
    return document


async def test_a_large_output_is_given_by_reference_and_served_as_a_file(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one(id="big.one")})
    large: JsonObject = {"text": "<script>" * 50_000, "n": [1, 2.50], "a longer key": {"晴": None}}
    await world.run(task_id, lambda _: large)
    shown = await me.get(f"/tasks/{task_id}")
    reference = shown["subtasks"][0]["output"]
    assert await served(me, reference, "big.one.json") == large
    assert shown["result"] == reference
    assert (await me.get(f"/tasks/{task_id}/subtasks/big.one"))["output"] == reference
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/result")).json() == large


async def test_a_large_result_of_small_outputs_is_given_by_reference_and_they_are_not(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": {"subtasks": SUBTASKS[:500]}})
    await world.run(task_id, lambda item: {"value": "x" * 1000, "key": item.key})
    shown = await me.get(f"/tasks/{task_id}")
    outputs = {item["id"]: item["output"] for item in shown["subtasks"]}
    assert outputs["s7"] == {"value": "x" * 1000, "key": "s7"}
    assert shown["result"]["$blob"] == f"/api/v1/tasks/{task_id}/result"
    assert await served(me, shown["result"], f"{task_id}.json") == outputs
    somebody = await world.user()
    assert (await somebody.http.get(shown["result"]["$blob"])).status_code == 404


async def test_a_result_that_is_not_there_yet_is_404(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/result")).status_code == 404
    await world.run(task_id, lambda _: {"small": 1})
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/result")).json() == {"small": 1}
    assert (await me.http.get("/api/v1/tasks/nothing/result")).status_code == 404


async def test_an_output_that_is_not_there_yet_is_404(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/only/output")).status_code == 404


async def test_a_page_ends_early_rather_than_outgrow_memory(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("rayloom.db.reads.PAGE_INLINE_BYTES", 5000)
    me = await world.user()
    task_id = await me.submit({"plan": {"subtasks": SUBTASKS[:9]}})
    sizes = {"s0": 2000, "s1": 2000, "s2": 2000, "s3": 300_000, "s4": 4000, "s5": 9000, "s6": 1, "s7": 1, "s8": 1}
    await world.run(task_id, lambda item: "x" * sizes[item.key])
    shown = await me.get(f"/tasks/{task_id}")
    pages, cursor = [shown["subtasks"]], shown["subtasks_next_cursor"]
    while cursor:
        page = await me.get(f"/tasks/{task_id}/subtasks", limit=8, cursor=cursor)
        pages.append(page["items"])
        cursor = page["next_cursor"]
    assert [[item["id"] for item in page] for page in pages] == [
        ["s0", "s1"], ["s2", "s3"], ["s4"], ["s5"], ["s6", "s7", "s8"],
    ]  # fmt: skip
    # What is by reference does not count, and nothing else is ever by reference.
    assert ["$blob" in item["output"] for page in pages for item in page] == [key == "s3" for key in sizes]


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
