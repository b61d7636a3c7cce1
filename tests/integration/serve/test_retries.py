"""Tasks retried and forked over REST."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.plan import parse_plan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.db.backends import Backends
from rayloom.db.engine import driver
from rayloom.db.files import TaskFiles
from rayloom.db.growth import extend_plan
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import claim_tasks, end_task
from tests.integration.serve.world import DIAMOND, Person, World, one, until


async def stuck(world: World, me: Person, *bad: str, plan: JsonObject = DIAMOND, **fields: Any) -> str:
    """A task that has run until these of its subtasks are BLOCKED."""
    task_id = await me.submit({"plan": plan, **fields})
    while items := await world.claimed(task_id):
        await world.end([item for item in items if item.key not in bad], lambda item: f"{item.key} {item.attempt}")
        for item in items:
            if item.key in bad:
                await world.fail(item)
    return task_id


async def statuses(me: Person, task_id: str) -> dict[str, str]:
    return {each["id"]: each["status"] for each in (await me.get(f"/tasks/{task_id}"))["subtasks"]}


def pointers(answer: Any) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [fault["pointer"] for fault in answer.json()["errors"]]


# -- retry -------------------------------------------------------------------------------------------------------------


async def test_a_retried_task_keeps_what_completed_and_finishes(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b", "c")
    assert await statuses(me, task_id) == {"a": "COMPLETED", "b": "BLOCKED", "c": "BLOCKED", "d": "SKIPPED"}
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/retry", json={"subtasks": ["b"]})
    assert answer.status_code == 202
    assert answer.json() == {"task_id": task_id, "status": "PROCESSING", "retried": ["b"]}
    assert await statuses(me, task_id) == {"a": "COMPLETED", "b": "QUEUED", "c": "BLOCKED", "d": "SKIPPED"}
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/retry")
    assert answer.json()["retried"] == ["c"]
    assert await statuses(me, task_id) == {"a": "COMPLETED", "b": "QUEUED", "c": "QUEUED", "d": "READY"}
    await world.run(task_id)
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["error"], shown["result"]) == ("COMPLETED", None, "d")
    assert {each["id"]: each["attempts"] for each in shown["subtasks"]} == {"a": 1, "b": 2, "c": 2, "d": 1}
    assert shown["subtasks"][0]["output"] == "a 1"


async def test_a_discarded_letter_that_is_named_beside_others_is_told(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b", "c")
    found = {each["subtask"]: each["id"] for each in (await me.get("/dead-letters"))["items"]}
    assert (await me.http.post(f"/api/v1/dead-letters/{found['b']}/discard")).status_code == 200
    path, named = f"/api/v1/tasks/{task_id}/retry", {"subtasks": ["c", "b"]}
    answer = await me.http.post(path, json=named)
    assert answer.status_code == 409
    message = "`b` has a letter that was discarded: only a fork can run it anew"
    assert answer.json()["errors"] == [{"pointer": "/subtasks/1", "message": message}]
    assert await statuses(me, task_id) == {"a": "COMPLETED", "b": "BLOCKED", "c": "BLOCKED", "d": "SKIPPED"}
    # Who names nothing means what is open.
    assert (await me.http.post(path)).json()["retried"] == ["c"]


async def test_what_can_not_be_retried_is_told(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b")
    path = f"/api/v1/tasks/{task_id}/retry"
    answer = await me.http.post(path, json={"subtasks": ["bb", "a", "b"]})
    assert pointers(answer) == ["/subtasks/0"]
    assert answer.json()["errors"][0]["message"] == "there is no subtask `bb`; did you mean b?"
    answer = await me.http.post(path, json={"subtasks": ["a", "b"]})
    assert answer.status_code == 409, answer.text
    assert answer.json()["errors"] == [{"pointer": "/subtasks/0", "message": "`a` is COMPLETED, not BLOCKED"}]
    assert pointers(await me.http.post(path, json={"subtasks": []})) == ["/subtasks"]
    assert pointers(await me.http.post(path, json={"budget": {"deadline_s": 0}})) == ["/budget/deadline_s"]
    assert pointers(await me.http.post(path, json={"budget": {"deadline_s": 1e12}})) == ["/budget/deadline_s"]
    assert pointers(await me.http.post(path, json={"all": True})) == ["/all"]
    assert (await me.http.post(path)).status_code == 202
    running = await me.http.post(path)
    assert (running.status_code, running.json()["type"]) == (409, "urn:rayloom:problem:nothing-blocked")
    await world.run(task_id)
    assert (await me.http.post(path)).status_code == 409
    stranger = await world.user()
    for id_ in (task_id, "x", str(uuid7())):
        assert (await stranger.http.post(f"/api/v1/tasks/{id_}/retry")).status_code == 404


async def test_a_task_that_has_no_plan_is_planned_again_with_the_budget_that_is_given(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "look", "budget": {"max_tokens": 5, "max_cost_usd": 1.0}})
    error = ErrorInfo(code="BUDGET_EXCEEDED", error_class="refused", message="spent", retryable=False)
    path = f"/api/v1/tasks/{task_id}/retry"
    assert (await me.http.post(path)).status_code == 409
    await end_task(world.engine, UUID(task_id), status="FAILED", error=error, reason="spent")
    assert (await me.http.post(path, json={"subtasks": ["a"]})).status_code == 422
    answer = await me.http.post(path, json={"budget": {"max_tokens": 9_000}})
    assert (answer.status_code, answer.json()) == (202, {"task_id": task_id, "status": "PENDING", "retried": []})
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["error"], shown["finished_at"]) == ("PENDING", None, None)
    async with driver(world.engine) as connection:
        options = await connection.fetchval("SELECT options FROM tasks WHERE id = $1::uuid", task_id)
    assert options["budget"] == {"max_tokens": 9_000, "max_cost_usd": 1.0}
    assert (await me.http.post(path)).status_code == 409


async def test_a_task_whose_plan_had_begun_is_planned_on_and_keeps_what_is_done(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "do it"})
    # As its splitter does it.
    await world.claimed(task_id)
    life, id_, blobs = world.incarnation, UUID(task_id), world.deps.backends.blobs
    await claim_tasks(world.engine, incarnation=life, dead=(), limit=1_000, busy=())
    await accept_plan(world.engine, blobs, id_, _planned("a", "b"), meta={}, incarnation=life, grows=True)
    done, _ = await world.claimed(task_id)
    await world.end([done], lambda item: item.key)
    error = ErrorInfo(code="MODEL_UNAVAILABLE", error_class="transient", message="away", retryable=True)
    await end_task(world.engine, id_, status="FAILED", error=error, reason="away", splitter=life)
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/retry")
    assert (answer.status_code, answer.json()) == (202, {"task_id": task_id, "status": "PROCESSING", "retried": []})
    assert sorted((await statuses(me, task_id)).values()) == ["CANCELLED", "COMPLETED"]
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/retry")).status_code == 409


async def test_who_follows_a_task_hears_of_its_retry_however_its_id_was_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "look"})
    error = ErrorInfo(code="BUDGET_EXCEEDED", error_class="refused", message="spent", retryable=False)
    await end_task(world.engine, UUID(task_id), status="FAILED", error=error, reason="spent")
    told: list[str] = []
    offer = Backends.offer

    async def overheard(backends: Backends, queued: Any, *touched: str) -> bool:
        told.extend(touched)
        return await offer(backends, queued, *touched)

    monkeypatch.setattr(Backends, "offer", overheard)
    answer = await me.http.post(f"/api/v1/tasks/{task_id.upper()}/retry", json={"budget": {"max_tokens": 9_000}})
    assert (answer.status_code, answer.json()["retried"]) == (202, [])
    assert told == [task_id]


async def test_retries_of_a_task_at_once_run_it_once(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b", "c")
    answers = await asyncio.gather(*(me.http.post(f"/api/v1/tasks/{task_id}/retry") for _ in range(10)))
    assert sorted(id_ for answer in answers for id_ in answer.json().get("retried", [])) == ["b", "c"]
    assert {answer.status_code for answer in answers} == {202, 409}


async def test_a_task_that_its_deadline_ended_is_not_retried_but_forked(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    await world.end(await world.claimed(task_id), lambda item: item.key)
    await world.fail((await world.claimed(task_id))[0])
    error = ErrorInfo(code="DEADLINE_EXCEEDED", error_class="user", message="too late", retryable=False)
    task = (await me.get(f"/tasks/{task_id}"))["task_id"]
    await end_task(world.engine, task, status="FAILED", error=error, reason="DEADLINE_EXCEEDED")
    letter = (await me.get("/dead-letters"))["items"][0]
    for path in (f"/tasks/{task_id}/retry", f"/dead-letters/{letter['id']}/retry"):
        refused = await me.http.post(f"/api/v1{path}")
        assert (refused.status_code, "fork" in refused.json()["detail"]) == (409, True)
    bulk = await me.http.post("/api/v1/dead-letters/retry", json={"filter": {}})
    assert bulk.json() == {"matched": 1, "accepted": 0}
    forked = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["b"]})
    assert forked.status_code == 202


async def test_a_deadline_that_has_passed_wants_another_one(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b", budget={"deadline_s": 3600.0})
    async with driver(world.engine) as connection:
        await connection.execute("UPDATE tasks SET deadline_at = now() WHERE id = $1::uuid", task_id)
    letter = (await me.get("/dead-letters"))["items"][0]
    for path in (f"/tasks/{task_id}/retry", f"/dead-letters/{letter['id']}/retry"):
        refused = await me.http.post(f"/api/v1{path}")
        assert (refused.status_code, "deadline_s" in refused.json()["detail"]) == (409, True)
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/retry", json={"budget": {"deadline_s": 60, "max_tokens": 9}})
    assert answer.status_code == 202
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["deadline_at"] > shown["created_at"]) == ("PROCESSING", True)
    async with driver(world.engine) as connection:
        options = await connection.fetchval("SELECT options FROM tasks WHERE id = $1::uuid", task_id)
    assert options["budget"] == {"deadline_s": 60, "max_tokens": 9}


# -- fork --------------------------------------------------------------------------------------------------------------


async def fork(me: Person, task_id: str, **body: Any) -> str:
    """Fork a task; gives the new one's id."""
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json=body)
    assert answer.status_code == 202, answer.text
    made = answer.json()["task_id"]
    assert answer.headers["location"] == f"/api/v1/tasks/{made}"
    assert made != task_id
    return str(made)


async def test_a_fork_takes_over_what_completed_and_runs_the_named_and_all_below_anew(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, title="diamond", labels={"team": "x"}, priority=7)
    before = await me.get(f"/tasks/{task_id}")
    made = await fork(me, task_id, **{"from": ["b"]}, inputs={"b": {"value": ["${a.output}"]}})
    assert await statuses(me, made) == {"a": "COMPLETED", "b": "QUEUED", "c": "COMPLETED", "d": "READY"}
    shown = await me.get(f"/tasks/{made}")
    assert shown["forked_from"] == task_id
    assert (shown["title"], shown["labels"], shown["priority"]) == ("diamond", {"team": "x"}, 7)
    assert before["forked_from"] is None
    a = shown["subtasks"][0]
    assert (a["output"], a["attempts"], a["sub_task_id"] != before["subtasks"][0]["sub_task_id"]) == ("a 1", 0, True)
    (again,) = await world.claimed(made)
    assert (again.key, again.attempt, again.input) == ("b", 1, '{"value": ["${a.output}"]}')
    await world.end([again], lambda item: "other")
    await world.run(made)
    shown = await me.get(f"/tasks/{made}")
    assert (shown["status"], shown["result"]) == ("COMPLETED", "d")
    assert {each["id"]: each["attempts"] for each in shown["subtasks"]} == {"a": 0, "b": 1, "c": 0, "d": 1}
    after = await me.get(f"/tasks/{task_id}")
    assert after == before
    log = (await me.get(f"/tasks/{made}/logs"))["items"]
    assert any(f"taken over from task {task_id}" in str(item) for item in log)
    assert (await me.get(f"/tasks/{made}/trace"))["spans"]
    plan_of_fork = await fork(me, made, **{"from": ["d"]})
    assert await statuses(me, plan_of_fork) == {"a": "COMPLETED", "b": "COMPLETED", "c": "COMPLETED", "d": "QUEUED"}


async def test_what_had_not_completed_is_run_anew_too(world: World) -> None:
    me = await world.user()
    failed = await stuck(world, me, "b")
    made = await fork(me, failed, **{"from": ["c"]})
    assert await statuses(me, made) == {"a": "COMPLETED", "b": "QUEUED", "c": "QUEUED", "d": "READY"}
    running = await me.submit({"plan": DIAMOND})
    await world.end(await world.claimed(running), lambda item: item.key)
    made = await fork(me, running, **{"from": ["d"]})
    assert await statuses(me, made) == {"a": "COMPLETED", "b": "QUEUED", "c": "QUEUED", "d": "READY"}
    await world.run(made)
    assert (await me.get(f"/tasks/{made}"))["status"] == "COMPLETED"
    assert (await me.get(f"/tasks/{running}"))["status"] == "PROCESSING"


async def test_an_input_may_refer_to_other_outputs_than_before(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me)
    made = await fork(me, task_id, **{"from": ["d"]}, inputs={"d": {"value": {"$ref": "a.output"}}})
    (again,) = await world.claimed(made)
    assert (again.key, again.referred) == ("d", ("a",))
    shown = await me.get(f"/tasks/{made}")
    assert next(each for each in shown["subtasks"] if each["id"] == "d")["depends_on"] == ["a", "c"]


async def test_a_fork_of_a_retry_keeps_the_input_that_helped(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me, "b")
    letter = (await me.get("/dead-letters"))["items"][0]
    answer = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry", json={"input": {"value": "mended"}})
    assert answer.status_code == 202
    await world.run(task_id)
    made = await fork(me, task_id, **{"from": ["b"]})
    (again,) = await world.claimed(made)
    assert again.input == '{"value": "mended"}'


async def test_the_workspace_comes_along(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me)
    await TaskFiles(world.engine, world.deps.backends.blobs, task_id).write("a.txt", b"kept", "text/plain")
    made = await fork(me, task_id, **{"from": ["d"]})
    assert await TaskFiles(world.engine, world.deps.backends.blobs, made).read("a.txt") == b"kept"


async def known_to_be_gone(world: World, tool: str) -> bool:
    return tool not in await world.deps.offered.all()


async def test_a_tool_that_is_gone_matters_only_where_it_would_run(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me)
    before = world.fakes.registry.tools
    world.fakes.registry.change({name: tool for name, tool in before.items() if name != "core.noop"})
    try:
        await until(lambda: known_to_be_gone(world, "core.noop"))
        made = await fork(me, task_id, **{"from": ["d"]})
        assert await statuses(me, made) == {"a": "COMPLETED", "b": "COMPLETED", "c": "COMPLETED", "d": "QUEUED"}
        answer = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["c"]})
        assert pointers(answer) == ["/from"]
        assert "`c` can't run anew: there is no tool `core.noop`" in answer.json()["errors"][0]["message"]
    finally:
        world.fakes.registry.change(before)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ["/from"]),
        ({"from": []}, ["/from"]),
        ({"from": "b"}, ["/from"]),
        ({"from": ["b", "nobody"]}, ["/from/1"]),
        ({"from": ["b"], "inputs": {"nobody": {}}}, ["/inputs/nobody"]),
        ({"from": ["b"], "inputs": {"a": {}}}, ["/inputs/a"]),
        ({"from": ["b"], "inputs": {"b": 1}}, ["/inputs/b"]),
        ({"from": ["b"], "inputs": {"b": {"value": 1, "more": 1}, "d": {}}}, ["/inputs/b/more", "/inputs/d/value"]),
        ({"from": ["b"], "inputs": {"b": {"value": "${nobody.output}"}}}, ["/inputs/b/value"]),
        ({"from": ["b"], "inputs": {"b": {"value": "${d.output}"}}}, ["/inputs/b"]),
        ({"from": ["b"], "other": 1}, ["/other"]),
        ({"from": ["b"], "callback_url": "https://example.org/hook"}, ["/callback_url"]),
    ],
)
async def test_a_wrong_fork_is_told_with_its_places_and_makes_nothing(
    world: World, body: JsonObject, expected: list[str]
) -> None:
    me = await world.user()
    task_id = await stuck(world, me)
    assert pointers(await me.http.post(f"/api/v1/tasks/{task_id}/fork", json=body)) == expected
    assert len((await me.get("/tasks"))["items"]) == 1


async def test_a_task_without_a_plan_has_nothing_to_fork(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "do it"})
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["a"]})
    assert (answer.status_code, "no plan" in answer.json()["detail"]) == (409, True)
    await me.http.post(f"/api/v1/tasks/{task_id}/cancel")
    stranger = await world.user()
    assert (await stranger.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["a"]})).status_code == 404


def _planned(*ids: str) -> VerifiedPlan:
    """A plan of subtasks that stand alone."""
    plan = parse_plan({"subtasks": [{"id": id_, "type": "TOOL", "tool": "core.noop"} for id_ in ids]})
    return verify(plan, tools={"core.noop": ToolView(name="core.noop", schema={}, resources={})}, nodes=())


async def test_a_plan_that_is_not_whole_is_not_forked_and_what_it_dropped_never(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "do it"})
    # As its splitter does it.
    await world.claimed(task_id)
    life, id_, blobs = world.incarnation, UUID(task_id), world.deps.backends.blobs
    await claim_tasks(world.engine, incarnation=life, dead=(), limit=1_000, busy=())
    await accept_plan(world.engine, blobs, id_, _planned("a", "b"), meta={}, incarnation=life, grows=True)
    for item in await world.claimed(task_id):
        await (world.fail(item) if item.key == "b" else world.end([item], lambda item: item.key))
    asked = (f"/api/v1/tasks/{task_id}/fork", {"from": ["a"]})
    answer = await me.http.post(asked[0], json=asked[1])
    assert (answer.status_code, "none that is whole" in answer.json()["detail"]) == (409, True)
    letter = (await me.get("/dead-letters"))["items"][0]["id"]
    answer = await me.http.post(f"/api/v1/dead-letters/{letter}/retry", json={"input": {}})
    assert answer.status_code == 409
    await extend_plan(
        world.engine, blobs, id_, _planned("a", "b", "c"), known=("a", "b"), incarnation=life, meta={}, is_last=True,
        dropped=("b",),
    )  # fmt: skip
    await world.run(task_id)
    assert (await me.get(f"/tasks/{task_id}"))["result"] == {"a": "a", "c": "c"}
    made = await fork(me, task_id, **{"from": ["c"]})
    assert await statuses(me, made) == {"a": "COMPLETED", "c": "QUEUED"}


async def test_the_same_idempotency_key_forks_once(world: World) -> None:
    me = await world.user()
    task_id = await stuck(world, me)
    headers = {"Idempotency-Key": str(uuid7())}

    async def once() -> str:
        answer = await me.http.post(f"/api/v1/tasks/{task_id}/fork", json={"from": ["b"]}, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["task_id"])

    assert len(set(await asyncio.gather(*(once() for _ in range(10))))) == 1
    for path, body in ((f"tasks/{task_id}/fork", {"from": ["c"]}), ("tasks", {"plan": one()})):
        other = await me.http.post(f"/api/v1/{path}", json=body, headers=headers)
        assert pointers(other) == ["/headers/Idempotency-Key"]
