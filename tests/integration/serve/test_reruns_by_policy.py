"""Retries and forks over REST, where policies, approval and webhooks have their say."""

from __future__ import annotations

import base64
from typing import Any

import httpx2

from rayloom.dag.values import Json, JsonObject
from rayloom.db import webhooks
from tests.integration.serve.world import Person, World

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def noop(name: str, *depends_on: str, **fields: Json) -> JsonObject:
    return {"id": name, "type": "TOOL", "tool": "core.noop", "depends_on": list(depends_on), **fields}


async def run(world: World, task_id: str, *bad: str) -> None:
    """Run a task until nothing of it can run, and these are BLOCKED."""
    while items := await world.claimed(task_id):
        await world.end([item for item in items if item.key not in bad], lambda item: item.key)
        for item in items:
            if item.key in bad:
                await world.fail(item)


async def statuses(me: Person, task_id: str) -> dict[str, str]:
    return {each["id"]: each["status"] for each in (await me.get(f"/tasks/{task_id}"))["subtasks"]}


async def letters(me: Person) -> dict[str, str]:
    return {each["subtask"]: each["id"] for each in (await me.get("/dead-letters"))["items"]}


def refused(answer: httpx2.Response, kind: str) -> str:
    assert answer.status_code == 409, answer.text
    assert answer.json()["type"] == f"urn:rayloom:problem:{kind}"
    return str(answer.json()["detail"])


async def test_what_can_never_be_retried_says_why_and_a_fork_runs_it(world: World) -> None:
    me = await world.user()
    plan: JsonObject = {"subtasks": [
        noop("m", on_failure="continue"), noop("asks", require_approval=True), noop("bad"),
        noop("end", "m", "asks", "bad"),
    ]}  # fmt: skip
    task_id = await me.submit({"plan": plan})
    await run(world, task_id, "m", "bad")
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/reject", json={"subtask": "asks", "reason": "no"})
    assert answer.status_code == 200
    found = await letters(me)
    assert set(found) == {"m", "asks", "bad"}
    assert "fork" in refused(await me.http.post(f"/api/v1/dead-letters/{found['m']}/retry"), "missing")
    assert "fork" in refused(await me.http.post(f"/api/v1/dead-letters/{found['asks']}/retry"), "rejected")
    named = await me.http.post(f"/api/v1/tasks/{task_id}/retry", json={"subtasks": ["m", "asks", "bad"]})
    assert [(fault["pointer"], "fork" in fault["message"]) for fault in named.json()["errors"]] == [
        ("/subtasks/0", True), ("/subtasks/1", True),
    ]  # fmt: skip
    bulk = await me.http.post("/api/v1/dead-letters/retry", json={"filter": {}})
    assert bulk.json() == {"matched": 3, "accepted": 1}
    await run(world, task_id, "bad")
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/retry")
    assert answer.json()["retried"] == ["bad"]
    await run(world, task_id)
    assert await statuses(me, task_id) == {"m": "BLOCKED", "asks": "BLOCKED", "bad": "COMPLETED", "end": "SKIPPED"}
    refused(await me.http.post(f"/api/v1/tasks/{task_id}/retry"), "nothing-blocked")
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["asks"]})
    made = answer.json()["task_id"]
    assert await statuses(me, made) == {
        "m": "QUEUED", "asks": "AWAITING_APPROVAL", "bad": "COMPLETED", "end": "READY",
    }  # fmt: skip
    await me.http.post(f"/api/v1/tasks/{made}/approve")
    await run(world, made, "m")
    shown = await me.get(f"/tasks/{made}")
    assert (shown["status"], shown["missing"]) == ("COMPLETED", ["m"])


async def test_a_fork_keeps_the_policies_and_asks_for_its_plan_anew(world: World) -> None:
    me = await world.user()
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": "else"}}
    plan: JsonObject = {"subtasks": [
        noop("a", on_failure="fallback", fallback=fallback), noop("b", require_approval=True, cacheable=True),
        noop("c", "a", "b", on_failure="default", default={"n": 1}), noop("d", "c"),
    ]}  # fmt: skip
    task_id = await me.submit({"plan": plan, "require_approval": True})
    for _ in range(2):
        await me.http.post(f"/api/v1/tasks/{task_id}/approve")
    await run(world, task_id)
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "COMPLETED"
    made = (await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["c"]})).json()["task_id"]
    shown = await me.get(f"/tasks/{made}")
    assert (shown["status"], shown["forked_from"]) == ("READY", task_id)
    assert await statuses(me, made) == {"a": "COMPLETED", "b": "COMPLETED", "c": "PENDING", "d": "PENDING"}
    assert not await world.claimed(made)
    kept = ("on_failure", "require_approval", "fallback", "default")
    for key in "abcd":
        of_both = [await me.get(f"/tasks/{id_}/subtasks/{key}") for id_ in (task_id, made)]
        first, second = ({name: each.get(name) for name in kept} for each in of_both)
        assert first == second
    answer = await me.http.post(f"/api/v1/tasks/{made}/approve")
    assert answer.json()["plan"] is True
    await run(world, made, "c")
    shown = await me.get(f"/tasks/{made}")
    assert (shown["status"], shown["missing"], shown["result"]) == ("COMPLETED", ["c"], "d")


async def test_another_input_does_not_go_past_an_approval(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": {"subtasks": [noop("a", require_approval=True)]}})
    await me.http.post(f"/api/v1/tasks/{task_id}/approve")
    await run(world, task_id, "a")
    path = f"/api/v1/dead-letters/{(await letters(me))['a']}/retry"
    assert "fork" in refused(await me.http.post(path, json={"input": {"value": 2}}), "needs-approval")
    assert (await me.http.post(path)).status_code == 202
    await run(world, task_id)
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "COMPLETED"


async def test_a_letter_shows_which_attempts_ran_the_fallback(world: World) -> None:
    me = await world.user()
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": 0}}
    plan: JsonObject = {"subtasks": [noop("a", on_failure="fallback", fallback=fallback)]}
    task_id = await me.submit({"plan": plan})
    await run(world, task_id, "a")
    shown = await me.get(f"/dead-letters/{(await letters(me))['a']}")
    assert shown["tool"] == "core.noop"
    assert [(each["tool"], each["fallback"]) for each in shown["attempts"]] == [
        ("core.noop", False), ("core.echo", True),
    ]  # fmt: skip


async def test_a_letter_is_found_by_the_tool_of_the_fallback_that_failed(world: World) -> None:
    me = await world.user()
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": 0}}
    plan: JsonObject = {"subtasks": [
        noop("turned", on_failure="fallback", fallback=fallback), noop("own"),
        noop("waits", "own", on_failure="fallback", fallback=fallback),
    ]}  # fmt: skip
    await run(world, await me.submit({"plan": plan}), "turned", "own")

    async def found(tool: str) -> set[str]:
        page = await me.get("/dead-letters", tool=tool, status="open,retried")
        return {each["subtask"] for each in page["items"]}

    by_tool = {"core.echo": {"turned"}, "core.noop": {"turned", "own"}, "core.sleep": set[str]()}
    for tool, expected in by_tool.items():
        assert await found(tool) == expected
        body = {"filter": {"tool": tool}, "dry_run": True}
        bulk = await me.http.post("/api/v1/dead-letters/retry", json=body)
        assert bulk.json()["matched"] == len(expected)
    # Also when its subtask is back to its own tool.
    assert (await me.http.post(f"/api/v1/dead-letters/{(await letters(me))['turned']}/retry")).status_code == 202
    assert await found("core.echo") == {"turned"}


async def test_what_waits_for_a_retried_one_says_so_and_nothing_of_what_is_missing(world: World) -> None:
    me = await world.user()
    plan: JsonObject = {"subtasks": [noop("m", on_failure="continue"), noop("bad"), noop("end", "m", "bad")]}
    task_id = await me.submit({"plan": plan})
    await run(world, task_id, "m", "bad")
    await me.http.post(f"/api/v1/tasks/{task_id}/retry")
    told = await me.get(f"/tasks/{task_id}/subtasks/end/waiting")
    assert [each["detail"] for each in told["reasons"]] == ["1 dependency is not done: bad (QUEUED)"]


async def test_each_end_of_a_retried_task_is_told_and_none_of_a_fork(world: World) -> None:
    me = await world.user()
    hook: dict[str, Any] = {"callback_url": "https://example.org/hook", "callback_secret": SECRET}
    task_id = await me.submit({"plan": {"subtasks": [noop("a")]}, **hook})
    await run(world, task_id, "a")
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/retry")).status_code == 202
    await run(world, task_id)
    forked = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["a"]})
    made = forked.json()["task_id"]
    assert forked.json() == {"task_id": made}
    await run(world, made)
    assert (await me.get(f"/tasks/{made}"))["webhook"] is None
    due = await webhooks.take(world.engine, limit=100, lease_s=60)
    assert [each.task_status for each in due if each.task_id == task_id] == ["FAILED", "COMPLETED"]
    assert not [each for each in due if each.task_id == made]
