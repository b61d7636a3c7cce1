"""Events and logs, as pages and as streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import orjson
import pytest

from rayloom.dag.log_line import LogLine
from rayloom.db.log_lines import append
from tests.integration.serve.world import DIAMOND, Person, World, one, until
from tests.integration.waiting import GENEROUS_S

Event = tuple[str, str, dict[str, Any]]


async def _events(response: httpx2.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and "data" in fields:
            yield fields["id"], fields["event"], orjson.loads(fields["data"])
        if not line:
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def _stream(me: Person, path: str, **headers: str) -> list[Event]:
    async with me.http.stream("GET", f"/api/v1/tasks/{path}", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in _events(response)]


async def test_events_tell_every_transition_in_order_and_end_with_the_task(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    following = asyncio.create_task(_stream(me, f"{task_id}/events"))
    await world.run(task_id)
    async with asyncio.timeout(GENEROUS_S):
        events = await following
    ids = [int(id_) for id_, _, _ in events]
    assert ids == sorted(set(ids))
    assert all(data["id"] == int(id_) and data["task_id"] == task_id for id_, _, data in events)
    assert set(events[0][2]) == {"id", "at", "task_id", "subtask", "from", "to", "phase", "attempt", "reason"}
    assert [data["to"] for _, name, data in events if name == "task"] == [
        "PENDING", "SPLITTING", "READY", "PROCESSING", "COMPLETED",
    ]  # fmt: skip
    d = [(data["from"], data["to"]) for _, _, data in events if data["subtask"] == "d"]
    assert d == [("PENDING", "READY"), ("READY", "QUEUED"), ("QUEUED", "RUNNING"), ("RUNNING", "COMPLETED")]
    assert events[-1][1] == "task"


async def test_a_stream_goes_on_after_the_last_event_seen(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    await world.run(task_id)
    everything = await _stream(me, f"{task_id}/events")
    middle = everything[len(everything) // 2][0]
    rest = everything[len(everything) // 2 + 1 :]
    assert await _stream(me, f"{task_id}/events", **{"Last-Event-ID": middle}) == rest
    assert await _stream(me, f"{task_id}/events?last_event_id={middle}") == rest
    first = everything[0][0]
    assert await _stream(me, f"{task_id}/events?last_event_id={first}", **{"Last-Event-ID": middle}) == rest
    assert await _stream(me, f"{task_id}/events", **{"Last-Event-ID": everything[-1][0]}) == []


async def test_news_arrive_by_wake_up_and_not_by_polling(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.db.wakeups.QUIET_POLL_S", 3600.0)
    me = await world.user()
    task_id = await me.submit()
    async with me.http.stream("GET", f"/api/v1/tasks/{task_id}/events") as response:
        events = _events(response)
        async with asyncio.timeout(GENEROUS_S):
            while (await anext(events))[2]["to"] != "QUEUED":
                pass
            await world.run(task_id)
            assert [data["to"] async for _, _, data in events if data["subtask"]][-1] == "COMPLETED"


async def test_without_redis_a_stream_looks_by_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.db.wakeups.BLIND_POLL_S", 0.05)
    await world.deps.backends.wakeups.stop()
    assert not world.deps.backends.wakeups.connected
    me = await world.user()
    task_id = await me.submit()
    following = asyncio.create_task(_stream(me, f"{task_id}/events"))
    await world.run(task_id)
    async with asyncio.timeout(GENEROUS_S):
        assert (await following)[-1][2]["to"] == "COMPLETED"


async def test_a_stream_that_is_left_gives_its_place_back(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    async with me.http.stream("GET", f"/api/v1/tasks/{task_id}/events") as response:
        events = _events(response)
        await anext(events)
        assert "rayloom_http_streams_open 1.0" in (await me.http.get("/metrics")).text

    async def look() -> bool:
        return "rayloom_http_streams_open 0.0" in (await me.http.get("/metrics")).text

    assert await until(look)


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 30, "٣"])
async def test_a_bad_event_id_is_refused(world: World, bad: str) -> None:
    me = await world.user()
    task_id = await me.submit()
    answer = await me.http.get(f"/api/v1/tasks/{task_id}/events", params={"last_event_id": bad})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/last_event_id"


async def _log(world: World, task_id: str, message: str, **fields: Any) -> None:
    await append(world.engine, [LogLine(at=datetime.now(UTC), task_id=task_id, message=message, **fields)])
    await world.signals.tell([task_id])


async def test_the_log_merges_lines_transitions_and_outputs_oldest_first(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await _log(world, task_id, "splitting notes")
    items = await world.claimed(task_id)
    await _log(world, task_id, "from the tool", subtask="only", attempt=1, stream="tool", fields={"k": 1})
    await world.end(items, lambda _: 1, stdout="out 1\nout 2\n", stderr="err")
    page = await me.get(f"/tasks/{task_id}/logs")
    assert page["next_cursor"] is None
    said = [(item["stream"], item["message"]) for item in page["items"]]
    assert ("stdout", "out 1") in said
    assert said.index(("system", "splitting notes")) < said.index(("tool", "from the tool"))
    assert said[-4:] == [
        ("stdout", "out 2"), ("stderr", "err"), ("system", "subtask only is COMPLETED"),
        ("system", "task is COMPLETED"),
    ]  # fmt: skip
    assert set(page["items"][0]) == {"id", "at", "level", "stream", "subtask", "attempt", "message", "fields"}
    assert len({item["id"] for item in page["items"]}) == len(page["items"])
    small: list[Any] = []
    cursor = None
    while True:
        part = await me.get(f"/tasks/{task_id}/logs", limit=2, **({"cursor": cursor} if cursor else {}))
        small += part["items"]
        cursor = part["next_cursor"]
        if cursor is None:
            break
        assert len(part["items"]) == 2
    assert small == page["items"]


async def test_the_log_is_filtered(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    [first] = await world.claimed(task_id)
    await _log(world, task_id, "w", subtask="a", attempt=1, stream="tool", level="WARNING")
    await world.fail(first, stdout="so far")

    async def lines(**params: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await me.get(f"/tasks/{task_id}/logs", **params))["items"]
        return items

    assert {item["subtask"] for item in await lines(subtask="a")} == {"a"}
    assert [item["message"] for item in await lines(stream="stdout")] == ["so far"]
    assert {item["level"] for item in await lines(level="warning,ERROR")} == {"WARNING", "ERROR"}
    assert [item["message"] for item in await lines(stream="tool", level="WARNING")] == ["w"]
    assert await lines(attempt=2) == []
    assert {item["attempt"] for item in await lines(attempt=1)} == {1}
    for bad in ("stream=x", "level=x", "attempt=0", "attempt=99999999999", "limit=0", "cursor=x", "follow=perhaps"):
        answer = await me.http.get(f"/api/v1/tasks/{task_id}/logs?{bad}")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/query/" + bad.partition("=")[0]


async def test_lines_written_while_an_attempt_ran_are_not_told_again(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    items = await world.claimed(task_id)
    await _log(world, task_id, "out", subtask="only", attempt=1, stream="stdout")
    await world.end(items, lambda _: 1, stdout="out\n")
    page = await me.get(f"/tasks/{task_id}/logs", stream="stdout")
    assert [item["message"] for item in page["items"]] == ["out"]


@pytest.mark.parametrize("how", ["query", "accept"])
async def test_a_followed_log_is_the_whole_log_and_resumes(world: World, how: str) -> None:
    me = await world.user()
    task_id = await me.submit()
    query, headers = ("?follow=true", {}) if how == "query" else ("", {"Accept": "text/event-stream"})
    following = asyncio.create_task(_stream(me, f"{task_id}/logs{query}", **headers))
    items = await world.claimed(task_id)
    await _log(world, task_id, "hello", subtask="only", attempt=1, stream="stdout")
    await world.end(items, lambda _: 1, stderr="x\ny\nz")
    async with asyncio.timeout(GENEROUS_S):
        streamed = await following
    page = await me.get(f"/tasks/{task_id}/logs")
    assert {name for _, name, _ in streamed} == {"log"}
    assert [data for _, _, data in streamed] == page["items"]
    for place, (id_, _, _) in enumerate(streamed):
        rest = streamed[place + 1 :]
        assert await _stream(me, f"{task_id}/logs?follow=1", **{"Last-Event-ID": id_}) == rest
        since = f"{task_id}/logs?follow=1&last_event_id={streamed[0][0]}"
        assert await _stream(me, since, **{"Last-Event-ID": id_}) == rest


async def test_a_long_log_merges_across_batches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.db.logs._BATCH", 3)
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    while items := await world.claimed(task_id):
        for item in items:
            await _log(world, task_id, f"line of {item.key}", subtask=item.key, attempt=1, stream="tool")
        await world.end(items, lambda item: item.key, stdout="1\n2\n3\n4\n5")
    page = await me.get(f"/tasks/{task_id}/logs")
    assert [item["at"] for item in page["items"]] == sorted(item["at"] for item in page["items"])
    monkeypatch.undo()
    assert await me.get(f"/tasks/{task_id}/logs") == page
    assert len([item for item in page["items"] if item["stream"] == "stdout"]) == 20


async def test_head_of_a_stream_ends_at_once(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one()})
    answer = await me.http.head(f"/api/v1/tasks/{task_id}/events")
    assert answer.status_code == 200
    assert answer.content == b""
