"""What clients see of contents that are kept apart: inline up to 256 KiB, by reference above, whole for who asks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import orjson
import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Transient
from rayloom.dag.values import Json, JsonObject
from rayloom.db import results
from rayloom.db.attempts import Claimed
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.serve import apart
from rayloom.serve.settings import ServeSettings
from tests.integration.s3 import S3Server, s3_server
from tests.integration.serve.world import World, one, serving


@pytest.fixture(params=["postgres", "s3"])
async def world(
    request: pytest.FixtureRequest,
    database: DatabaseSettings,
    redis: RedisSettings,
    settings: ServeSettings,
    s3: S3Server,
) -> AsyncIterator[World]:
    blobs = BlobSettings() if request.param == "postgres" else s3.settings(uuid7().hex)
    async with serving(database, redis, settings, blobs) as world:
        yield world


def plan_of(*keys: str) -> JsonObject:
    """Subtasks that depend on nothing."""
    return {"subtasks": [{"id": key, "type": "TOOL", "tool": "core.noop"} for key in keys]}


def text(size: int) -> str:
    """A text that nobody else has, in so many bytes of JSON."""
    return (uuid7().hex * (size // 32 + 1))[: size - 2]


async def run(world: World, task_id: str, output: Callable[[Claimed], Json]) -> None:
    """Run a task to its end, as workers do: what has more than 64 KiB is put into the store first."""
    while items := await world.claimed(task_id):
        for item in items:
            raw = orjson.dumps(output(item))
            if len(raw) <= 64 * 1024:
                await world.end([item], output)
                continue
            blob = await world.deps.backends.blobs.put(raw)
            await world.end([item], lambda _: None, blob=blob)


async def test_inline_up_to_256_kib_and_by_reference_above(world: World) -> None:
    me = await world.user()
    sizes = {"small": 1000, "middle": 100_000, "edge": 256 * 1024, "beyond": 256 * 1024 + 1}
    task_id = await me.submit({"plan": plan_of(*sizes)})
    values = {key: text(size) for key, size in sizes.items()}
    await run(world, task_id, lambda item: values[item.key])
    shown = await me.get(f"/tasks/{task_id}")
    listed = (await me.get(f"/tasks/{task_id}/subtasks"))["items"]
    for items in (shown["subtasks"], listed):
        outputs = {item["id"]: item["output"] for item in items}
        reference = outputs.pop("beyond")
        assert outputs == {key: values[key] for key in ("small", "middle", "edge")}
        await expect(me.http, reference, orjson.dumps(values["beyond"]))
    assert (await me.get(f"/tasks/{task_id}/subtasks/middle"))["output"] == values["middle"]
    # All together are beyond, too: by a digest of the bytes that are served.
    result = shown["result"]
    assert result["$blob"] == f"/api/v1/tasks/{task_id}/result"
    whole = await expect(me.http, result)
    assert whole == values
    assert (await me.get(f"/tasks/{task_id}"))["result"] == result


async def expect(http: Any, reference: JsonObject, raw: bytes | None = None) -> object:
    answer = await http.get(reference["$blob"])
    assert answer.headers["content-disposition"].startswith("attachment")
    told = (len(answer.content), hashlib.sha256(answer.content).hexdigest())
    assert told == (reference["size"], reference["sha256"])
    assert raw is None or answer.content == raw
    document: object = answer.json()
    return document


@pytest.mark.parametrize("size", [100_000, 300_000])
async def test_the_result_of_one(world: World, size: int) -> None:
    me, value = await world.user(), text(size)
    task_id = await me.submit()
    await run(world, task_id, lambda _: value)
    for _ in range(2):
        result = (await me.get(f"/tasks/{task_id}"))["result"]
        if size == 100_000:
            assert result == value
        else:
            assert result["$blob"] == f"/api/v1/tasks/{task_id}/subtasks/only/output"
            await expect(me.http, result, orjson.dumps(value))
    answer = await me.http.get(f"/api/v1/tasks/{task_id}/result")
    assert answer.content == orjson.dumps(value)
    assert (await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/only/output")).content == orjson.dumps(value)


async def test_a_small_result_of_several(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": plan_of("a", "b")})
    values: dict[str, Json] = {"a": text(90_000), "b": 1}
    await run(world, task_id, lambda item: values[item.key])
    for _ in range(2):
        assert (await me.get(f"/tasks/{task_id}"))["result"] == values


async def test_a_large_input_is_shown_whole(world: World) -> None:
    me = await world.user()
    given: JsonObject = {"value": {"text": text(100_000), "n": [1.5]}}
    task_id = await me.submit({"plan": one(tool="core.echo", input=given)})
    assert (await me.get(f"/tasks/{task_id}/subtasks/only"))["input"] == given
    [claimed] = await world.claimed(task_id)
    assert claimed.input == "{}"
    assert orjson.loads(await world.deps.backends.blobs.get(claimed.input_blob)) == given
    await world.fail(claimed)
    [listed] = (await me.get("/dead-letters", task_id=task_id))["items"]
    assert listed["input"] is None
    letter = await me.get(f"/dead-letters/{listed['id']}")
    assert letter["input"] == given
    # Another one takes its place, and a fork finds it in the plan.
    other: JsonObject = {"value": text(70_000)}
    answer = await me.http.post(f"/api/v1/dead-letters/{listed['id']}/retry", json={"input": other})
    assert answer.status_code == 202, answer.text
    assert (await me.get(f"/tasks/{task_id}/subtasks/only"))["input"] == other
    forked = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["only"]})
    assert (await me.get(f"/tasks/{forked.json()['task_id']}/subtasks/only"))["input"] == other


async def test_a_direct_call_gives_its_output_inline(world: World) -> None:
    me, value = await world.user(), text(100_000)
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.echo/invoke", json={"input": {"value": value}}))
    task_id = await me.only_task()
    await run(world, task_id, lambda _: value)
    assert (await calling).json()["output"] == value


# -- S3 that is away ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def alone(
    database: DatabaseSettings, redis: RedisSettings, settings: ServeSettings
) -> AsyncIterator[tuple[World, S3Server]]:
    """A world whose S3 may be stopped."""
    with s3_server() as server:
        async with serving(database, redis, settings, server.settings("p")) as world:
            yield world, server


async def test_without_s3_a_page_has_references_and_contents_are_503(alone: tuple[World, S3Server]) -> None:
    world, server = alone
    me, value = await world.user(), text(100_000)
    await world.deps.backends.blobs.at(world.deps.backends.blobs.place).prepare()
    assert (await me.http.get("/readyz")).json()["checks"]["blob_store"]["status"] == "ok"
    below: JsonObject = {"id": "b", "type": "TOOL", "tool": "core.noop", "depends_on": ["a"]}
    task_id = await me.submit({"plan": {"subtasks": [*plan_of("a")["subtasks"], below]}})  # type: ignore[misc]  # a list
    await run(world, task_id, lambda item: value if item.key == "a" else 1)
    server.stop()
    await world.deps.backends.redis.flushdb()
    shown = await me.get(f"/tasks/{task_id}")
    reference = shown["subtasks"][0]["output"]
    raw = orjson.dumps(value)
    assert (reference["size"], reference["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    answer = await me.http.get(f"/api/v1/tasks/{task_id}/subtasks/a/output")
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) > 0
    large = {"plan": one(tool="core.echo", input={"value": text(100_000)})}
    assert (await me.http.post("/api/v1/tasks", json=large)).status_code == 503
    ready = await me.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["blob_store"]["status"] == "down"
    server.start()
    assert (await me.get(f"/tasks/{task_id}"))["subtasks"][0]["output"] == value


async def _lose(world: World, task_id: str) -> None:
    """Spoil the contents of a task's subtask a behind everybody's back."""
    async with driver(world.engine) as connection:
        await connection.execute(
            "UPDATE blobs b SET data = 'x', place = NULL FROM sub_tasks s "
            "WHERE s.parent_id = $1 AND s.key = 'a' AND b.sha256 IN (s.input_blob, s.output_blob)",
            UUID(task_id),
        )
    await world.deps.backends.redis.flushdb()


async def test_what_is_gone_for_good_hides_nothing_else(world: World) -> None:
    me, value = await world.user(), text(100_000)
    task_id = await me.submit({"plan": plan_of("a", "b")})
    await run(world, task_id, lambda item: value if item.key == "b" else text(90_000))
    await _lose(world, task_id)
    shown = await me.get(f"/tasks/{task_id}")
    outputs = {item["id"]: item["output"] for item in shown["subtasks"]}
    assert outputs["b"] == value, "only the one that is gone is left out"
    assert outputs["a"]["$blob"].endswith("/subtasks/a/output")
    assert shown["result"] == {"$blob": f"/api/v1/tasks/{task_id}/result"}
    assert (await me.get(f"/tasks/{task_id}/subtasks/a"))["output"] == outputs["a"]
    for path in ("result", "subtasks/a/output"):
        assert (await me.http.get(f"/api/v1/tasks/{task_id}/{path}")).status_code == 500


async def test_an_input_that_is_gone_does_not_hide_why_its_subtask_failed(world: World) -> None:
    me = await world.user()
    plan: JsonObject = {
        "subtasks": [{"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": text(100_000)}}]
    }
    task_id = await me.submit({"plan": plan})
    [claimed] = await world.claimed(task_id)
    await world.fail(claimed)
    await _lose(world, task_id)
    [listed] = (await me.get("/dead-letters", task_id=task_id))["items"]
    for path in (f"/dead-letters/{listed['id']}", f"/tasks/{task_id}/subtasks/a"):
        found = await me.get(path)
        assert (found["input"], found["input_error"]["code"]) == (None, "BLOB_CORRUPT")
        assert found["input_error"].keys() == {"code", "class", "message", "retryable"}
        assert (found["input_error"]["class"], found["input_error"]["retryable"]) == ("bug", False)
        assert found["error"] == listed["error"]
        assert found["error"]["code"]


@pytest.mark.parametrize("is_silent", [False, True])
async def test_without_s3_all_is_shown_but_what_is_there(
    alone: tuple[World, S3Server], monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    world, server = alone
    me, value = await world.user(), text(100_000)
    # Short where it is spent as a whole; else long enough to hear of the refusal.
    monkeypatch.setattr(apart, "SHOW_S", 0.5 if is_silent else 60.0)
    plan: JsonObject = {"subtasks": [{"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": value}}]}
    task_id = await me.submit({"plan": plan})
    await run(world, task_id, lambda _: value)
    await world.deps.backends.redis.flushdb()
    server.silence() if is_silent else server.stop()
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["result"] == {"$blob": f"/api/v1/tasks/{task_id}/result"}
    assert shown["subtasks"][0]["output"]["size"] == 100_000
    found = await me.get(f"/tasks/{task_id}/subtasks/a")
    code = "BLOB_STORE_SLOW" if is_silent else "BLOB_STORE_UNAVAILABLE"
    assert (found["input"], found["input_error"]["code"]) == (None, code)
    assert (found["input_error"]["class"], found["input_error"]["retryable"]) == ("transient", True)
    if not is_silent:
        assert (await me.http.get(f"/api/v1/tasks/{task_id}/result")).status_code == 503
        server.start()
        assert (await me.get(f"/tasks/{task_id}"))["result"] == value
        assert (await me.get(f"/tasks/{task_id}/subtasks/a"))["input"] == {"value": value}


async def test_a_result_that_can_not_be_noted_is_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    me, value = await world.user(), text(100_000)
    task_id = await me.submit()
    await run(world, task_id, lambda _: value)

    async def only_reads(*_: object) -> object:
        raise Transient("DATABASE_UNAVAILABLE", "it only reads")

    monkeypatch.setattr(results, "note", only_reads)
    for _ in range(2):
        assert (await me.get(f"/tasks/{task_id}"))["result"] == value


async def test_a_large_content_may_take_longer_than_another_request(
    database: DatabaseSettings, redis: RedisSettings, settings: ServeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = settings.model_copy(update={"request_timeout_s": 2.0})
    async with serving(database, redis, hasty, BlobSettings()) as world:
        me, value = await world.user(), text(100_000)
        task_id = await me.submit()
        await run(world, task_id, lambda _: value)
        find = BlobStore._find

        async def slowly(store: BlobStore, *given: Any) -> None:
            await asyncio.sleep(2.5)
            await find(store, *given)

        monkeypatch.setattr(BlobStore, "_find", slowly)
        for path in ("result", "subtasks/only/output"):
            answer = await me.http.get(f"/api/v1/tasks/{task_id}/{path}")
            assert (answer.status_code, answer.content) == (200, orjson.dumps(value))
