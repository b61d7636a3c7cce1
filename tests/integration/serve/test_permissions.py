"""Keys that may use some tools only: what they see, what they may submit and call, and what they can't widen."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from uuid_utils.compat import uuid7

from rayloom.db.engine import driver
from tests.integration.serve.world import Person, World, one, until


async def key_of(world: World, **fields: Any) -> httpx2.AsyncClient:
    """A client with a new key."""
    admin = await world.user("admin")
    made = await admin.http.post("/api/v1/keys", json={"user": f"u-{uuid7()}", "role": "user", **fields})
    assert made.status_code == 201, made.text
    assert {name: made.json()[name] for name in fields} == fields
    return world.nobody_with(made.json()["key"])


async def names(client: httpx2.AsyncClient) -> list[str]:
    return [item["name"] for item in (await client.get("/api/v1/tools")).json()["items"]]


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, ["core.echo", "core.noop", "core.sleep"]),
        ({"max_level": "admin"}, ["core.echo", "core.noop", "core.sleep"]),
        ({"tools": {"allow": ["core.*"], "deny": ["*.sleep"]}}, ["core.echo", "core.noop"]),
        ({"tools": {"allow": ["core.echo", "secret.*"], "deny": []}}, ["core.echo"]),
        ({"tools": {"allow": [], "deny": []}}, []),
        ({"tools": {"allow": ["*"], "deny": []}, "max_level": "read"}, ["core.echo", "core.noop", "core.sleep"]),
    ],
)
async def test_a_key_sees_what_it_may_use(world: World, fields: dict[str, Any], seen: list[str]) -> None:
    assert await names(await key_of(world, **fields)) == seen


async def test_waiting_call_is_withdrawn_when_breaker_opens_and_key_denies_the_alternative(world: World) -> None:
    admin = await world.user("admin")
    client = await key_of(world, tools={"allow": ["*"], "deny": ["core.sleep"]})
    path = "/api/v1/tools/core.noop"
    calling = asyncio.create_task(client.post(f"{path}/invoke", json={}))

    async def waits() -> bool:
        tasks = (await client.get("/api/v1/tasks")).json()["items"]
        return [item["status"] for item in tasks] == ["PROCESSING"]

    try:
        await until(waits)
        await admin.http.patch(path, json={"alternative": "core.sleep"})
        await admin.http.patch(path, json={"breaker": "open"})
        assert (await calling).json()["error"]["code"] == "BREAKER_OPEN"
    finally:
        await admin.http.patch(path, json={"breaker": "closed", "alternative": None})


async def test_what_a_key_may_not_use_it_can_neither_submit_nor_call(world: World) -> None:
    world.fakes.registry.relevel("core.sleep", "write")
    for fields in ({"max_level": "read"}, {"tools": {"allow": ["*"], "deny": ["core.s*"]}}):
        client = await key_of(world, **fields)
        assert "core.sleep" not in await names(client)
        assert (await client.get("/api/v1/tools/core.sleep")).status_code == 404
        assert (await client.post("/api/v1/tools/core.sleep/invoke", json={"input": {}})).status_code == 404
        plan = one(tool="core.sleep", input={"seconds": 0})
        # Not even where the task's own rules say so.
        body = {"plan": plan, "tools": {"allow": ["core.sleep"], "deny": []}}
        refused = await client.post("/api/v1/tasks", json=body)
        assert refused.status_code == 422
        assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/plan/subtasks/0/tool"]
        fallback = one(on_failure="fallback", fallback={"tool": "core.sleep", "input": {"seconds": 0}})
        refused = await client.post("/api/v1/tasks", json={"plan": fallback})
        assert [fault["pointer"] for fault in refused.json()["errors"]] == ["/plan/subtasks/0/fallback/tool"]
        assert (await client.post("/api/v1/tasks", json={"plan": one()})).status_code == 202


async def test_a_task_that_is_planned_later_keeps_the_rules_of_its_key(world: World) -> None:
    client = await key_of(world, tools={"allow": ["core.*"], "deny": []}, max_level="write")
    made = await client.post("/api/v1/tasks", json={"prompt": "do it", "tools": {"allow": ["*"], "deny": ["x"]}})
    rules = await _rules(world, made.json()["task_id"])
    assert (rules["allow"], rules["deny"]) == (["*"], ["x", "secret.tool"])
    assert rules["within"] == {"allow": ["core.*"], "deny": [], "max_level": "write"}
    admin = await world.user("admin")
    assert "within" not in await _rules(world, await admin.submit({"prompt": "do it"}))


async def _rules(world: World, task_id: str) -> dict[str, Any]:
    async with driver(world.engine) as connection:
        rules: dict[str, Any] = await connection.fetchval(
            "SELECT options -> 'tools' FROM tasks WHERE id = $1::uuid", task_id
        )
    return rules


async def two_keys(world: World, **fields: Any) -> tuple[httpx2.AsyncClient, httpx2.AsyncClient]:
    """Clients of one user: with a key that may use all that users may, and with a narrowed one."""
    admin = await world.user("admin")
    name = f"u-{uuid7()}"
    clients = []
    for own in ({}, fields):
        made = await admin.http.post("/api/v1/keys", json={"user": name, "role": "user", **own})
        clients.append(world.nobody_with(made.json()["key"]))
    return clients[0], clients[1]


async def test_a_fork_is_judged_by_the_key_that_asks_for_it(world: World) -> None:
    wide, narrow = await two_keys(world, tools={"allow": ["core.noop"], "deny": []})
    done = (await wide.post("/api/v1/tasks", json={"plan": one(tool="core.echo", input={"value": 1})})).json()
    await world.run(done["task_id"])
    path = f"/api/v1/tasks/{done['task_id']}/fork"
    refused = await narrow.post(path, json={"from": ["only"]})
    assert refused.status_code == 422
    assert "core.echo" in refused.json()["errors"][0]["message"]
    assert (await wide.post(path, json={"from": ["only"]})).status_code == 202


async def test_what_a_narrowed_key_calls_is_bounded_for_tools_to_come(world: World) -> None:
    bounds = {"allow": ["core.noop"], "deny": []}
    client = await key_of(world, tools=bounds)
    calling = asyncio.create_task(client.post("/api/v1/tools/core.noop/invoke", json={}))

    async def called() -> str | None:
        items = (await client.get("/api/v1/tasks")).json()["items"]
        return next((item["task_id"] for item in items), None)

    task_id = await until(called)
    rules = await _rules(world, task_id)
    assert rules["within"] == {**bounds, "max_level": "execute"}
    assert {"core.echo", "core.sleep"} <= set(rules["deny"])
    await world.run(task_id)
    assert (await calling).status_code == 200


async def test_who_gives_another_input_must_be_allowed_what_is_done_with_it(world: World) -> None:
    wide, narrow = await two_keys(world, tools={"allow": ["core.echo"], "deny": []})
    plan = {
        "subtasks": [
            {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": 1}},
            {"id": "b", "type": "TOOL", "tool": "core.sleep", "input": {"seconds": {"$ref": "a.output"}}},
        ]
    }
    task_id = (await wide.post("/api/v1/tasks", json={"plan": plan})).json()["task_id"]
    [item] = await world.claimed(task_id)
    await world.fail(item)
    [letter] = (await narrow.get("/api/v1/dead-letters")).json()["items"]
    path, body = f"/api/v1/dead-letters/{letter['id']}/retry", {"input": {"value": 0}}
    refused = await narrow.post(path, json=body)
    assert refused.status_code == 422
    assert "core.sleep" in refused.json()["errors"][0]["message"]
    # As it is, it decides nothing anew.
    assert (await narrow.post(path, json={})).status_code == 202
    await world.fail((await world.claimed(task_id))[0])
    assert (await wide.post(path, json=body)).status_code == 202


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"role": "admin", "max_level": "read"}, "/role"),
        ({"role": "admin", "tools": {"allow": ["core.*"], "deny": []}}, "/role"),
        ({"max_level": "god"}, "/max_level"),
        ({"tools": {"allow": [""]}}, "/tools/allow/0"),
        ({"tools": {"forbid": []}}, "/tools/forbid"),
    ],
)
async def test_what_no_key_can_be(world: World, fields: dict[str, Any], pointer: str) -> None:
    admin: Person = await world.user("admin")
    refused = await admin.http.post("/api/v1/keys", json={"user": "u", **fields})
    assert refused.status_code == 422
    assert [fault["pointer"] for fault in refused.json()["errors"]] == [pointer]
