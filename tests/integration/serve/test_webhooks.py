"""Webhooks as a client sees them: asked for with a task, shown with it, their secrets never shown."""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

from rayloom.dag.values import JsonObject
from rayloom.db import webhooks
from rayloom.db.engine import driver
from tests.integration.serve.world import World, one

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
URL = "https://example.org/hook?token=hidden"


def asking(**fields: Any) -> JsonObject:
    return {"plan": one(), "callback_url": URL, **fields}


async def test_it_is_shown_with_its_task_and_its_secret_nowhere(world: World) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tasks", json=asking(callback_secret=SECRET))
    assert answer.status_code == 202
    task_id = answer.json()["task_id"]
    assert answer.json() == {"task_id": task_id}
    shown = await me.get(f"/tasks/{task_id}")
    pending = {"status": "pending", "attempts": 0, "last_error": None, "delivered_at": None}
    assert shown["webhook"] == {"url": "https://example.org/hook", **pending}
    await world.run(task_id)
    taken = await webhooks.take(world.engine, limit=100, lease_s=60)
    (due,) = [each for each in taken if each.task_id == task_id]
    assert (due.url, due.task_status, due.result) == (URL, "COMPLETED", "only")
    await webhooks.put_off(world.engine, due, "the receiver answered 503", again_in_s=0)
    shown = (await me.get(f"/tasks/{task_id}"))["webhook"]
    assert (shown["status"], shown["attempts"], shown["last_error"]) == ("pending", 1, "the receiver answered 503")
    taken = await webhooks.take(world.engine, limit=100, lease_s=60)
    (due,) = [each for each in taken if each.task_id == task_id]
    await webhooks.delivered(world.engine, due)
    shown = (await me.get(f"/tasks/{task_id}"))["webhook"]
    assert (shown["status"], shown["attempts"], shown["last_error"]) == ("delivered", 2, None)
    assert shown["delivered_at"].endswith("Z")
    paths = [f"/tasks/{task_id}{more}" for more in ("", "/subtasks", "/subtasks/only", "/logs", "/trace")]
    for path in [*paths, "/tasks"]:
        told = (await me.http.get(f"/api/v1{path}")).text
        assert "whsec_" not in told
        assert SECRET.removeprefix("whsec_") not in told
        assert "hidden" not in told
    async with driver(world.engine) as connection:
        kept = await connection.fetchval("SELECT to_jsonb(t)::text FROM tasks t WHERE id = $1", UUID(task_id))
    assert SECRET.removeprefix("whsec_") not in kept


async def test_who_gives_no_secret_is_told_the_one_that_signs(world: World) -> None:
    me, other = await world.user(), await world.user()
    headers = {"Idempotency-Key": "one"}
    first = await me.http.post("/api/v1/tasks", json=asking(), headers=headers)
    again = await me.http.post("/api/v1/tasks", json=asking(), headers=headers)
    assert (again.headers["idempotent-replayed"], again.json()) == ("true", first.json())
    assert first.headers["cache-control"] == "no-store"
    secret = first.json()["callback_secret"]
    assert secret.startswith("whsec_")
    assert (await me.http.post("/api/v1/tasks", json=asking())).json()["callback_secret"] == secret
    assert (await other.http.post("/api/v1/tasks", json=asking())).json()["callback_secret"] != secret


async def test_a_task_without_a_callback_has_no_webhook(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    assert (await me.get(f"/tasks/{task_id}"))["webhook"] is None
    task_id = await me.submit(callback_url=None, callback_secret=None)
    assert (await me.get(f"/tasks/{task_id}"))["webhook"] is None


async def test_faults_never_repeat_a_secret(world: World) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tasks", json=asking(callback_secret="whsec_hunter2-and-more"))
    assert answer.status_code == 422
    assert "hunter2" not in answer.text
    answer = await me.http.post("/api/v1/tasks", json={"plan": one(), "callback_url": "https://me:hunter2@x.org/"})
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


async def test_list_shows_the_webhooks_of_its_user_without_secrets(world: World) -> None:
    me, other = await world.user(), await world.user()
    ended = []
    for _ in range(3):
        answer = await me.http.post("/api/v1/tasks", json=asking(callback_secret=SECRET))
        ended.append(answer.json()["task_id"])
        await world.run(ended[-1])
    first = await me.get("/webhooks", limit=2)
    second = await me.get("/webhooks", limit=2, cursor=first["next_cursor"])
    items = first["items"] + second["items"]
    assert [each["task_id"] for each in items] == ended[::-1]
    assert second["next_cursor"] is None
    assert {(each["url"], each["status"], each["task_status"], each["attempts"]) for each in items} == {
        ("https://example.org/hook", "pending", "COMPLETED", 0)
    }
    assert items[0]["next_attempt_at"].endswith("Z")
    assert (await me.get("/webhooks", status="delivered,failed"))["items"] == []
    assert (await other.get("/webhooks"))["items"] == []
    for params in ({"status": "lost"}, {"cursor": "x"}):
        assert (await me.http.get("/api/v1/webhooks", params=params)).status_code == 422


async def test_cancelled_webhook_is_never_sent_again(world: World) -> None:
    me, other, admin = await world.user(), await world.user(), await world.user("admin")
    answer = await me.http.post("/api/v1/tasks", json=asking(callback_secret=SECRET))
    task_id = answer.json()["task_id"]
    await world.run(task_id)
    (item,) = (await me.get("/webhooks"))["items"]
    path = f"/api/v1/webhooks/{item['id']}/cancel"
    (under_way,) = [each for each in await webhooks.take(world.engine, limit=100, lease_s=0) if each.task_id == task_id]
    for stranger in (other, admin):
        assert (await stranger.http.post(path)).status_code == 404
    cancelled = await admin.http.post(path, params={"user_id": str(me.id)})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert cancelled.json()["next_attempt_at"] is None
    # What the attempt under way has to say comes too late, and nothing is due.
    assert not await webhooks.put_off(world.engine, under_way, "the receiver answered 503", again_in_s=0)
    assert not await webhooks.delivered(world.engine, under_way)
    assert task_id not in {each.task_id for each in await webhooks.take(world.engine, limit=100, lease_s=60)}
    assert (await me.get(f"/tasks/{task_id}"))["webhook"]["status"] == "cancelled"
    assert (await me.http.post(path)).json() == cancelled.json()
    assert (await me.http.post("/api/v1/webhooks/none/cancel")).status_code == 404


async def test_delivered_webhook_can_not_be_cancelled(world: World) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tasks", json=asking(callback_secret=SECRET))
    task_id = answer.json()["task_id"]
    await world.run(task_id)
    (due,) = [each for each in await webhooks.take(world.engine, limit=100, lease_s=60) if each.task_id == task_id]
    await webhooks.delivered(world.engine, due)
    refused = await me.http.post(f"/api/v1/webhooks/{due.id}/cancel")
    assert refused.status_code == 409
    assert "delivered" in refused.json()["detail"]
