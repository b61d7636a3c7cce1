"""The audit over HTTP: every attempt to call a tool, with who, what, when and how it ended."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.values import JsonObject
from rayloom.db.engine import driver
from tests.integration.serve.world import Person, World, one

DIGEST = "ab" * 32


def spans(tool: str) -> str:
    """What a worker tells of a call."""
    times: JsonObject = {"started_at": 1.0, "finished_at": 2.0, "ok": True}
    phase: JsonObject = {"name": "EXECUTING", "kind": "phase", "attributes": {}, **times}
    call: JsonObject = {"name": tool, "kind": "tool", "attributes": {"version": "7", "input_sha256": DIGEST}, **times}
    return orjson.dumps([phase, call]).decode()


async def audited(admin: Person, **params: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await admin.get("/audit", **params))["items"]
    return items


async def test_a_call_is_audited(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    task_id = await me.submit({"plan": one(tool="core.echo", input={"value": 1})})
    [item] = await world.claimed(task_id)
    await world.end([item], lambda _: 1, spans=spans("core.echo"))
    [call] = await audited(admin, user_id=str(me.id))
    assert call.pop("duration_ms") == pytest.approx(5, abs=1)
    at, name = call.pop("at"), call.pop("user")
    assert at.endswith("Z")
    assert name.startswith("u-")
    assert call == {
        "user_id": str(me.id),
        "key_id": str(me.key_id),
        "task_id": task_id,
        "subtask": "only",
        "sub_task_id": item.sub_task_id,
        "attempt": 1,
        "tool": "core.echo",
        "version": "7",
        "input_sha256": DIGEST,
        "called": True,
        "outcome": "COMPLETED",
        "code": None,
        "worker_id": "worker-1",
    }


async def test_whether_a_tool_was_called_is_said_as_far_as_it_is_known(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    for told in ("[]", '[{"name": "PREPARE_ENV", "kind": "phase"}]', spans("stand.in")):
        [item] = await world.claimed(await me.submit())
        await world.fail(item, spans=told)
    calls = await audited(admin, user_id=str(me.id))
    assert [(call["tool"], call["called"], call["version"]) for call in calls] == [
        ("stand.in", True, "7"),
        ("core.noop", False, None),
        ("core.noop", None, None),
    ]
    assert {(call["outcome"], call["code"]) for call in calls} == {("FAILED", "BOOM")}


async def as_if_a_model_did(world: World, sub_task_id: str) -> None:
    async with driver(world.engine) as connection:
        await connection.execute("UPDATE sub_tasks SET tool = '' WHERE id = $1", UUID(sub_task_id))


async def test_each_call_that_a_model_made_is_audited_by_itself(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    task_id = await me.submit()
    [item] = await world.claimed(task_id)
    await as_if_a_model_did(world, item.sub_task_id)
    times: JsonObject = {"started_at": 1.0, "finished_at": 1.5}
    told: list[JsonObject] = [
        {"name": "reasoning", "kind": "model", "ok": True, "attributes": {}, **times},
        {"name": "one", "kind": "tool", "ok": True, "attributes": {"version": "1", "input_sha256": DIGEST}, **times},
        {"name": "two", "kind": "tool", "ok": False, "attributes": {"called": False, "error": "NO"}, **times},
        {"name": "one", "kind": "tool", "ok": False, "attributes": {"error": "HTTP_503"}, **times},
    ]
    await world.end([item], lambda _: 1, spans=orjson.dumps(told).decode())
    other = await me.submit()
    [item] = await world.claimed(other)
    await as_if_a_model_did(world, item.sub_task_id)
    await world.end([item], lambda _: 1, spans=orjson.dumps(told[:1]).decode())
    calls = await audited(admin, user_id=str(me.id))
    assert [(call["tool"], call["outcome"], call["code"], call["called"]) for call in calls] == [
        ("one", "FAILED", "HTTP_503", True),
        ("two", "FAILED", "NO", False),
        ("one", "COMPLETED", None, True),
    ]
    assert {call["duration_ms"] for call in calls} == {500.0}
    found, cursor = [], None
    while True:
        page = await admin.get("/audit", user_id=str(me.id), limit=1, **({"cursor": cursor} if cursor else {}))
        found += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == calls


async def test_the_fallback_of_a_subtask_is_named(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": 1}}
    task_id = await me.submit({"plan": one(on_failure="fallback", fallback=fallback, max_retries=0)})
    [item] = await world.claimed(task_id)
    await world.fail(item)
    await world.run(task_id)
    assert [call["tool"] for call in await audited(admin, task_id=task_id)] == ["core.echo", "core.noop"]


async def test_pages_and_filters(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    tasks = []
    calls: tuple[tuple[str, JsonObject], ...] = (("core.noop", {}), ("core.echo", {"value": 1}), ("core.noop", {}))
    for tool, given in calls:
        tasks.append(await me.submit({"plan": one(tool=tool, input=given)}))
        await world.end(await world.claimed(tasks[-1]), lambda _: 1, spans=spans(tool))
    mine = {"user_id": str(me.id)}
    every = await audited(admin, **mine)
    assert [call["task_id"] for call in every] == tasks[::-1]
    first = await admin.get("/audit", limit=2, **mine)
    second = await admin.get("/audit", limit=2, cursor=first["next_cursor"], **mine)
    assert first["items"] + second["items"] == every
    assert second["next_cursor"] is None
    middle = every[1]["at"]
    for params, found in (
        ({"tool": "core.echo", **mine}, every[1:2]),
        ({"task_id": tasks[0]}, every[2:]),
        ({"key_id": str(me.key_id)}, every),
        ({"key_id": str(uuid7())}, []),
        ({"created_after": middle, **mine}, every[:2]),
        ({"created_before": middle, **mine}, every[2:]),
    ):
        assert await audited(admin, **params) == found, params


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"user_id": "me"}, "/query/user_id"),
        ({"key_id": "x"}, "/query/key_id"),
        ({"task_id": "x"}, "/query/task_id"),
        ({"created_after": "yesterday"}, "/query/created_after"),
        ({"cursor": "x"}, "/query/cursor"),
        ({"limit": 0}, "/query/limit"),
    ],
)
async def test_what_it_does_not_understand(world: World, params: dict[str, Any], pointer: str) -> None:
    admin = await world.user("admin")
    refused = await admin.http.get("/api/v1/audit", params=params)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer


async def test_only_an_admin_looks(world: World) -> None:
    answer: httpx2.Response = await (await world.user()).http.get("/api/v1/audit")
    assert answer.status_code == 403
