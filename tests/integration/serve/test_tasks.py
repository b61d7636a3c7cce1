"""Submit, list, look, cancel."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.outcome import Outcome
from rayloom.dag.plan import parse_plan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verify import verify
from rayloom.db.attempts import Ending, complete, report_phase
from rayloom.db.engine import driver
from rayloom.db.growth import extend_plan
from rayloom.db.submit import accept_plan
from rayloom.db.task_moves import claim_tasks
from tests.integration.serve.world import DIAMOND, World, one


async def test_a_plan_is_accepted_run_and_shown_in_full(world: World) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tasks", json={"plan": DIAMOND, "title": "diamond", "labels": {"team": "x"}})
    assert answer.status_code == 202
    task_id = answer.json()["task_id"]
    assert answer.json() == {"task_id": task_id}
    assert answer.headers["location"] == f"/api/v1/tasks/{task_id}"
    before = await me.get(f"/tasks/{task_id}")
    assert before["status"] == "PROCESSING"
    assert before["progress"]["queued"] == 1
    assert before["progress"]["ready"] == 3
    await world.run(task_id, lambda item: {"said": item.key})
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "COMPLETED"
    assert shown["title"] == "diamond"
    assert shown["result"] == {"said": "d"}
    assert shown["error"] is None
    assert shown["progress"] == {
        "total": 4, "completed": 4, "running": 0, "queued": 0, "ready": 0, "pending": 0, "awaiting_approval": 0,
        "failed": 0, "blocked": 0, "skipped": 0, "cancelled": 0, "percent": 100.0,
    }  # fmt: skip
    assert shown["usage"] == {"tokens": 0, "cost_usd": 0.0}
    assert shown["subtasks_next_cursor"] is None
    d = shown["subtasks"][3]
    assert d["id"] == "d"
    assert d["depends_on"] == ["b", "c"]
    assert d["attempts"] == 1
    assert d["output"] == {"said": "d"}
    assert d["duration_ms"] == pytest.approx(5, abs=1)
    assert d["started_at"].endswith("Z")
    assert set(d) == {
        "id", "sub_task_id", "name", "type", "tool", "status", "phase", "depends_on", "attempts", "worker_id",
        "queued_at", "started_at", "finished_at", "duration_ms", "tokens_used", "output", "error",
    }  # fmt: skip


async def test_a_prompt_waits_for_the_scheduler_which_is_woken(world: World) -> None:
    me = await world.user()
    async with world.signals.listen("rayloom:wake") as listener:
        # Until the subscription is answered, which is no message.
        await listener.wait(60)
        task_id = await me.submit({"prompt": "# Count the words\nand tell me", "priority": 9})
        assert await listener.wait(60) is not None
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "PENDING"
    assert shown["title"] == "Count the words"
    assert shown["prompt"] == "# Count the words\nand tell me"
    assert shown["progress"]["total"] == 0


@pytest.mark.parametrize("what", [{"plan": DIAMOND}, {"prompt": "do this"}], ids=["plan", "prompt"])
async def test_the_same_idempotency_key_gives_the_same_task_once(world: World, what: JsonObject) -> None:
    me = await world.user()
    key = str(uuid7())

    async def submit() -> tuple[str, str | None]:
        answer = await me.http.post("/api/v1/tasks", json=what, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.text
        return answer.json()["task_id"], answer.headers.get("idempotent-replayed")

    answers = await asyncio.gather(*(submit() for _ in range(100)))
    assert len({task_id for task_id, _ in answers}) == 1
    assert sum(replayed is None for _, replayed in answers) == 1
    assert len((await me.get("/tasks"))["items"]) == 1
    async with driver(world.engine) as connection:
        made = await connection.fetchval("SELECT count(*) FROM tasks WHERE user_id = $1", me.id)
        subtasks = await connection.fetchval("SELECT count(*) FROM sub_tasks WHERE user_id = $1", me.id)
    assert (made, subtasks) == (1, 4 if "plan" in what else 0)
    other = await me.http.post("/api/v1/tasks", json={**what, "priority": 6}, headers={"Idempotency-Key": key})
    assert other.status_code == 422
    assert other.json()["errors"][0]["pointer"] == "/headers/Idempotency-Key"
    stranger = await world.user()
    theirs = await stranger.http.post("/api/v1/tasks", json=what, headers={"Idempotency-Key": key})
    assert theirs.status_code == 202
    assert theirs.json()["task_id"] != answers[0][0]


async def test_key_order_does_not_make_another_body(world: World) -> None:
    me = await world.user()
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    first = await me.http.post("/api/v1/tasks", content=b'{"prompt": "x", "priority": 3}', headers=headers)
    again = await me.http.post("/api/v1/tasks", content=b'{"priority":3,"prompt":"x"}', headers=headers)
    assert again.json() == first.json()


async def test_lists_page_by_page_stay_stable_while_tasks_arrive(world: World) -> None:
    me = await world.user()
    made = [await me.submit() for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await me.get("/tasks", limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [item["task_id"] for item in page["items"]]
        await me.submit()
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]


async def test_lists_are_filtered(world: World) -> None:
    me = await world.user()
    first = await me.submit(title="100% wool_socks", priority=2, labels={"team": "x", "env": "y"})
    second = await me.submit(title="other", priority=3, labels={"team": "z"})
    await world.run(first)

    async def ids(**params: object) -> list[str]:
        return [item["task_id"] for item in (await me.get("/tasks", **params))["items"]]

    assert await ids(status="COMPLETED") == [first]
    assert await ids(status="completed,PROCESSING") == [second, first]
    assert await ids(priority=3) == [second]
    assert await ids(q="100% WOOL_") == [first]
    assert await ids(q="1000") == []
    assert await ids(label="team=x") == [first]
    at = (await me.get(f"/tasks/{second}"))["created_at"]
    assert await ids(created_before=at) == [first]
    assert await ids(created_after=at) == []
    assert await ids(created_after="2020-01-01T00:00:00+00:00", created_before="2100-01-01") == [second, first]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/query/limit"),
        ("limit=x", "/query/limit"),
        ("limit=501", "/query/limit"),
        ("cursor=!!", "/query/cursor"),
        ("cursor=WzFd", "/query/cursor"),
        ("cursor=" + "A" * 2000, "/query/cursor"),
        ("status=DONE", "/query/status"),
        ("priority=11", "/query/priority"),
        ("created_after=yesterday", "/query/created_after"),
        ("created_before=0001-01-01T00:00:00%2B14:00", "/query/created_before"),
        ("label=x", "/query/label"),
        ("q=a%00b", "/query/q"),
        ("user_id=me", "/query/user_id"),
    ],
)
async def test_bad_queries_are_refused_with_a_pointer(world: World, query: str, pointer: str) -> None:
    me = await world.user()
    answer = await me.http.get(f"/api/v1/tasks?{query}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_nobody_sees_what_is_somebody_elses(world: World) -> None:
    me, other, admin = await world.user(), await world.user(), await world.user("admin")
    task_id = await me.submit({"plan": one()})
    await world.run(task_id)
    paths = ["", "/subtasks", "/subtasks/only", "/subtasks/only/output", "/logs", "/trace", "/events"]
    for path in paths:
        assert (await me.http.get(f"/api/v1/tasks/{task_id}{path}")).status_code == 200
        for stranger in (other, admin):
            answer = await stranger.http.get(f"/api/v1/tasks/{task_id}{path}")
            assert answer.status_code == 404
            assert answer.json()["status"] == 404
    assert (await other.http.post(f"/api/v1/tasks/{task_id}/cancel")).status_code == 404
    assert (await other.get("/tasks"))["items"] == []
    assert (await other.http.get("/api/v1/tasks", params={"user_id": str(me.id)})).status_code == 403
    theirs = await admin.get("/tasks", user_id=str(me.id))
    assert [item["task_id"] for item in theirs["items"]] == [task_id]
    assert (await admin.get(f"/tasks/{task_id}", user_id=str(me.id)))["task_id"] == task_id


async def test_cancel_stops_what_runs_and_may_be_repeated(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    await world.end(await world.claimed(task_id), lambda item: item.key)
    b, _ = await world.claimed(task_id)
    await report_phase(world.engine, b.sub_task_id, 1, "EXECUTING", "w", "r")
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/cancel")
    assert answer.status_code == 202
    told = answer.json()
    stopped = {item["subtask"]: (item["attempt"], item["status"], item["phase"]) for item in told["stopped"]}
    assert stopped == {"b": (1, "RUNNING", "EXECUTING"), "c": (1, "RUNNING", "PREPARE_ENV")}
    assert (told["task_id"], told["status"]) == (task_id, "CANCELLED")
    assert (told["withdrawn"], told["completed"]) == ({"ready": 1}, {"count": 1, "subtasks": ["a"]})
    assert sorted(world.fakes.scheduler.stopped) == sorted((item["sub_task_id"], 1) for item in told["stopped"])
    lines = [(line["subtask"], line["message"]) for line in (await me.get(f"/tasks/{task_id}/logs"))["items"]]
    assert ("b", "attempt 1 is stopped in EXECUTING") in lines
    assert ("c", "attempt 1 is stopped in PREPARE_ENV") in lines
    summary = "attempts that are stopped: 2; withdrawn before they began: 1 (1 READY); completed before: 1 (a)"
    assert (None, f"cancelled by its user: {summary}") in lines
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "CANCELLED"
    assert shown["progress"]["cancelled"] == 3
    again = await me.http.post(f"/api/v1/tasks/{task_id}/cancel")
    assert again.status_code == 202
    nothing: JsonObject = {"stopped": [], "withdrawn": {}, "completed": {"count": 1, "subtasks": ["a"]}}
    assert again.json() == {"task_id": task_id, "status": "CANCELLED", **nothing}


async def test_each_attempt_shows_its_ray_task(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    await world.end(await world.claimed(task_id), lambda item: item.key)
    b, _ = await world.claimed(task_id)

    async def shown(key: str) -> list[str | None]:
        attempts = (await me.get(f"/tasks/{task_id}/subtasks/{key}"))["attempts"]
        spans = (await me.get(f"/tasks/{task_id}/trace"))["spans"]
        traced = [s["attributes"].get("ray_task_id") for s in spans if (s["kind"], s["subtask"]) == ("attempt", key)]
        ids = [attempt["ray_task_id"] for attempt in attempts]
        assert ids == traced
        return ids

    assert await shown("b") == [None], "its worker has said nothing"
    await report_phase(world.engine, b.sub_task_id, 1, "EXECUTING", "w", "ray task of b")
    assert await shown("b") == ["ray task of b"]
    outcome = Outcome(
        verdict="succeeded", output="1", started_at=1.8e9, finished_at=1.8e9, ray_task_id="the same", worker_id="w"
    )
    await complete(world.engine, [Ending(sub_task_id=b.sub_task_id, attempt=1, outcome=outcome)])
    assert await shown("b") == ["the same"]


async def test_cancel_is_too_late_for_a_task_that_has_ended(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await world.run(task_id)
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/cancel")
    assert answer.status_code == 409
    assert "COMPLETED" in answer.json()["detail"]


async def test_a_scheduler_that_is_away_does_not_fail_a_cancel(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await world.claimed(task_id)
    world.fakes.scheduler.is_down = True
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/cancel")).status_code == 202


async def test_without_nodes_resources_are_not_judged(world: World) -> None:
    me = await world.user()
    greedy: JsonObject = one(resources={"num_cpus": 1000})
    world.fakes.scheduler.is_down = True
    assert (await me.http.post("/api/v1/tasks", json={"plan": greedy})).status_code == 202


async def test_impossible_resources_are_refused(world: World) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tasks", json={"plan": one(resources={"num_cpus": 1000})})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/plan/subtasks/0/resources"
    assert (await me.get("/tasks"))["items"] == []


async def test_a_failed_task_says_why(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    [first] = await world.claimed(task_id)
    await world.fail(first, retry_in_s=60)
    waiting = (await me.get(f"/tasks/{task_id}"))["subtasks"][0]
    assert waiting["status"] == "FAILED"
    assert waiting["retry_at"] is not None
    assert waiting["error"]["code"] == "BOOM"
    other = await me.submit({"plan": DIAMOND})
    [first] = await world.claimed(other)
    await world.fail(first)
    shown = await me.get(f"/tasks/{other}")
    assert shown["status"] == "FAILED"
    assert shown["error"]["code"] == "SUBTASKS_BLOCKED"
    assert shown["progress"]["blocked"] == 1
    assert shown["progress"]["skipped"] == 3


async def test_a_plan_that_is_not_whole_is_never_all_done(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"prompt": "do it"})
    assert (await me.get(f"/tasks/{task_id}"))["plan_open"] is False
    # As its splitter does it.
    await world.claimed(task_id)
    life, id_, blobs = world.incarnation, UUID(task_id), world.deps.backends.blobs
    await claim_tasks(world.engine, incarnation=life, dead=(), limit=1_000, busy=())
    plan = parse_plan({"subtasks": [{"id": "a", "type": "TOOL", "tool": "core.noop"}]})
    begun = verify(plan, tools={"core.noop": ToolView(name="core.noop", schema={}, resources={})}, nodes=())
    await accept_plan(world.engine, blobs, id_, begun, meta={}, incarnation=life, grows=True)

    async def shown() -> tuple[bool, float, JsonObject, bool]:
        details, (item,) = await me.get(f"/tasks/{task_id}"), (await me.get("/tasks"))["items"]
        return details["plan_open"], details["progress"]["percent"], item["subtasks"], item["plan_open"]

    assert await shown() == (True, 0.0, {"total": 1, "settled": 0}, True)
    await world.end(await world.claimed(task_id), lambda _: "done")
    assert await shown() == (True, 50.0, {"total": 1, "settled": 1}, True)
    await extend_plan(
        world.engine, blobs, id_, begun, known=("a",), incarnation=life, meta={}, is_last=True
    )  # fmt: skip
    assert await shown() == (False, 100.0, {"total": 1, "settled": 1}, False)
