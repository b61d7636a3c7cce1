"""Why a subtask is not running yet, asked over HTTP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rayloom.dag.ports import Limited
from rayloom.dag.values import JsonObject
from tests.integration.serve.world import DIAMOND, Person, World, one


async def why(me: Person, task_id: str, subtask: str) -> Any:
    return await me.get(f"/tasks/{task_id}/subtasks/{subtask}/waiting")


async def test_from_the_queue_to_the_end(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND, "priority": 1})
    await me.submit({"plan": one(), "priority": 9})
    answer = await why(me, task_id, "d")
    assert answer["status"] == "READY"
    detail = "2 dependencies are not done: b (READY), c (READY)"
    assert answer["reasons"] == [{"kind": "dependency", "detail": detail, "until": None}]
    answer = await why(me, task_id, "a")
    assert (answer["status"], [reason["kind"] for reason in answer["reasons"]]) == ("QUEUED", ["resources", "queue"])
    ahead = int(answer["reasons"][1]["detail"].split()[0])
    assert ahead >= 1, "the urgent one"
    await world.end(await world.claimed(task_id), lambda item: item.key)
    b, c = sorted(await world.claimed(task_id), key=lambda item: item.key)
    assert await why(me, task_id, "b") == {"status": "RUNNING", "reasons": []}
    await world.end([b], lambda item: item.key)
    assert (await why(me, task_id, "d"))["reasons"][0]["detail"] == "1 dependency is not done: c (RUNNING)"
    await world.fail(c, retry_in_s=60)
    answer = await why(me, task_id, "c")
    assert (answer["status"], answer["reasons"][0]["kind"]) == ("FAILED", "backoff")
    assert answer["reasons"][0]["until"].endswith("Z")
    assert await why(me, task_id, "a") == {"status": "COMPLETED", "reasons": []}


async def test_limits_come_from_whoever_knows_them(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    world.fakes.tokens.limited_at = (0, Limited(limit="requests_per_min", free_in_s=20.0))
    reasons = (await why(me, task_id, "only"))["reasons"]
    assert (reasons[0]["kind"], reasons[0]["until"] is not None) == ("limit", True)
    world.fakes.tokens.is_down = True
    knows = world.fakes.scheduler.knows
    world.fakes.scheduler.knows = replace(knows, limit="max_tokens", limit_in_s=2.0)
    reasons = (await why(me, task_id, "only"))["reasons"]
    assert [reason["kind"] for reason in reasons] == ["quota", "resources", "queue"]


async def test_without_a_scheduler_the_record_answers(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    world.fakes.scheduler.is_down = world.fakes.tokens.is_down = True
    (reason,) = (await why(me, task_id, "only"))["reasons"]
    assert (reason["kind"], "the scheduler can't be asked now" in reason["detail"]) == ("queue", True)


async def test_a_breaker_is_told_of_only_where_nothing_may_be_called_in_its_place(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    path = "/api/v1/tools/core.echo"
    plan = one(tool="core.echo", input={"value": 1})
    fallback: JsonObject = {"tool": "core.noop", "input": {}}
    turning = one(tool="core.echo", input={"value": 1}, on_failure="fallback", fallback=fallback)
    waits = await me.submit({"plan": plan, "tools": {"deny": ["core.sleep"]}})
    goes_on, turns = await me.submit({"plan": plan}), await me.submit({"plan": turning})

    async def kinds(*tasks: str) -> list[str]:
        return [(await why(me, task_id, "only"))["reasons"][0]["kind"] for task_id in tasks]

    try:
        await admin.http.patch(path, json={"breaker": "open"})
        assert await kinds(waits, goes_on, turns) == ["breaker", "breaker", "resources"]
        await admin.http.patch(path, json={"alternative": "core.sleep"})
        assert await kinds(waits, goes_on, turns) == ["breaker", "resources", "resources"]
    finally:
        await admin.http.patch(path, json={"breaker": "closed", "alternative": None})


async def test_it_is_nobody_elses_business(world: World) -> None:
    me, other = await world.user(), await world.user()
    task_id = await me.submit()
    path = f"/api/v1/tasks/{task_id}/subtasks"
    assert (await other.http.get(f"{path}/only/waiting")).status_code == 404
    problem: JsonObject = (await me.http.get(f"{path}/nothing/waiting")).json()
    assert problem["status"] == 404
