"""Keys, quotas, usage, health, metrics, pages: what whoever runs the place needs."""

from __future__ import annotations

import asyncio
import re

import httpx2
import pytest
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from rayloom.dag.model import ModelUse, Payer, Reservation
from rayloom.dag.token_port import Share, TokenFigures, Used
from rayloom.dag.values import JsonObject
from rayloom.db.alerts import AlertStore
from rayloom.db.ledger import Ledger
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import World, one, serving, until


async def test_a_key_is_shown_once_works_and_is_revoked(world: World) -> None:
    admin = await world.user("admin")
    name = f"new-{uuid7()}"
    made = await admin.http.post("/api/v1/keys", json={"user": name, "role": "user"})
    assert made.status_code == 201
    body = made.json()
    assert body["key"].startswith("rl_")
    assert len(body["key"]) >= 35
    assert {"id", "key", "user_id", "user", "role"} <= set(body)
    again = (await admin.http.post("/api/v1/keys", json={"user": name, "role": "admin"})).json()
    assert again["user_id"] == body["user_id"]
    listed = [item for item in (await admin.get("/keys", limit=500))["items"] if item["user"] == name]
    assert {item["id"] for item in listed} == {body["id"], again["id"]}
    assert all("key" not in item and "key_hash" not in item for item in listed)
    headers = {"Authorization": f"Bearer {body['key']}"}
    assert (await world.nobody().get("/api/v1/tasks", headers=headers)).status_code == 200
    assert (await admin.http.delete(f"/api/v1/keys/{body['id']}")).status_code == 204
    assert (await world.nobody().get("/api/v1/tasks", headers=headers)).status_code == 401
    assert (await admin.http.delete(f"/api/v1/keys/{body['id']}")).status_code == 404


async def test_keys_are_listed_of_one_user_when_asked(world: World) -> None:
    admin, me, other = await world.user("admin"), await world.user(), await world.user()
    mine = await admin.get("/keys", user_id=str(me.id), limit=500)
    assert [item["id"] for item in mine["items"]] == [str(me.key_id)]
    assert {str(me.key_id), str(other.key_id)} <= {
        item["id"] for item in (await admin.get("/keys", limit=500))["items"]
    }
    assert (await admin.get("/keys", user_id=str(uuid7())))["items"] == []
    refused = await admin.http.get("/api/v1/keys", params={"user_id": "me"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/query/user_id"


@pytest.mark.parametrize(
    "body", [{}, {"user": ""}, {"user": " x"}, {"user": "x", "role": "root"}, {"user": "x", "a": 1}]
)
async def test_a_bad_key_request_is_refused(world: World, body: dict[str, object]) -> None:
    admin = await world.user("admin")
    assert (await admin.http.post("/api/v1/keys", json=body)).status_code == 422


async def test_quotas_are_read_and_replaced(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    path = f"/quotas/{me.id}"
    nothing = dict.fromkeys(("max_tokens", "max_cost_usd", "tokens_per_min", "requests_per_min", "max_concurrent"))
    assert await admin.get(path) == nothing
    put = await admin.http.put(f"/api/v1{path}", json={"max_concurrent": 2, "max_cost_usd": 1.5})
    assert put.json() == {**nothing, "max_concurrent": 2, "max_cost_usd": 1.5}
    assert await admin.get(path) == put.json()
    refused: tuple[dict[str, object], ...] = (
        {"max_concurrent": -1}, {"max_concurrent": 1.5}, {"max_tokens": "1"}, {"tokens": 1},
        {"max_cost_usd": -1.0}, {"max_cost_usd": 1e20},
    )  # fmt: skip
    for bad in refused:
        answer = await admin.http.put(f"/api/v1{path}", json=bad)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/" + next(iter(bad))
    assert (await admin.http.get(f"/api/v1/quotas/{uuid7()}")).status_code == 404


async def test_usage_is_told_by_tool_and_day(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    await world.end(await world.claimed(task_id), lambda _: 1, tokens_used=7)
    usage = await me.get("/usage")
    [item] = usage["items"]
    assert item["tool"] == "core.noop"
    assert item["tokens_in"] == 7
    assert item["user_id"] == str(me.id)
    assert usage["total"]["tokens_in"] == 7
    assert usage["reserved"] == {"tokens": 0, "cost_usd": 0.0}
    for before in ("2020-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "0001-01-02"):
        assert (await me.get("/usage", created_before=before))["items"] == []


async def test_what_a_fallback_used_is_told_of_the_tool_that_used_it(world: World) -> None:
    me = await world.user()
    fallback: JsonObject = {"tool": "core.echo", "input": {"value": 1}}
    task_id = await me.submit({"plan": one(on_failure="fallback", fallback=fallback, max_retries=0)})
    [item] = await world.claimed(task_id)
    await world.fail(item)
    await world.end(await world.claimed(task_id), lambda _: 1, tokens_used=7)
    used = {item["tool"]: item["tokens_in"] for item in (await me.get("/usage"))["items"]}
    assert (used.get("core.echo"), used.get("core.noop", 0)) == (7, 0)


async def test_usage_has_what_models_used_for_each_tool_and_what_is_reserved(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    (claimed,) = await world.claimed(task_id)
    payer = Payer(user_id=str(me.id), task_id=task_id, sub_task_id=claimed.sub_task_id, attempt=claimed.attempt)
    ledger = Ledger(world.engine)
    calls = [
        Reservation(id=str(uuid7()), payer=paid, model="m", purpose="p", tokens=50, cost_usd=0.5, lease_s=60)
        for paid in (payer, payer, Payer(user_id=str(me.id), task_id=task_id))
    ]
    await ledger.reserve(calls)
    use = ModelUse(tokens_in=3, tokens_out=4, cost_usd=0.25)
    await ledger.settle([(calls[0], use), (calls[2], use)])
    # The tool says 2 of its own; the attempt used nine in all.
    await world.end([claimed], lambda _: 1, tokens_used=9, model_tokens=7)
    usage = await me.get("/usage")
    day = usage["items"][0]["day"]
    assert usage["items"] == [
        {"user_id": str(me.id), "model": model, "tool": tool, "day": day, "tokens_in": in_, "tokens_out": out,
         "cost_usd": cost}
        for model, tool, in_, out, cost in (
            ("m", None, 3, 4, 0.25), (None, "core.noop", 2, 0, 0.0), ("m", "core.noop", 3, 4, 0.25),
        )
    ]  # fmt: skip
    assert usage["total"] == {"tokens_in": 8, "tokens_out": 8, "cost_usd": 0.5}
    assert usage["reserved"] == {"tokens": 50, "cost_usd": 0.5}
    assert usage["warnings"] == []
    task = await me.get(f"/tasks/{task_id}")
    assert task["usage"] == {"tokens": 16, "cost_usd": 0.5}
    (subtask,) = task["subtasks"]
    assert subtask["tokens_used"] == 9
    (attempt,) = (await me.get(f"/tasks/{task_id}/subtasks/{subtask['id']}"))["attempts"]
    assert attempt["tokens_used"] == 9
    spans = (await me.get(f"/tasks/{task_id}/trace"))["spans"]
    assert [span["attributes"]["tokens"] for span in spans if span["kind"] == "attempt"] == [9]
    await ledger.close()


async def test_a_limit_that_is_nearly_used_up_is_told_with_the_usage(world: World) -> None:
    me = await world.user()
    shares = [("user", "max_tokens", 0.85), ("user", "max_cost_usd", 0.5), ("task", "max_tokens", 0.9)]
    world.fakes.tokens.counted = TokenFigures(
        shares=tuple(
            Share(level=level, id=str(me.id), limit=limit, share=share)  # type: ignore[arg-type]
            for level, limit, share in shares
        ),
        warn_share=0.8,
    )
    assert (await me.get("/usage"))["warnings"] == ["max_tokens: 85% of it is used"]
    world.fakes.tokens.is_down = True
    assert (await me.get("/usage"))["warnings"] == []
    near = Share(level="user", id=str(me.id), limit="max_tokens", share=0.85)
    await AlertStore(world.engine).alert([near])
    (alert,) = (await me.get("/usage"))["alerts"]
    at = alert.pop("at")
    assert alert == {"level": "user", "id": str(me.id), "limit": "max_tokens", "share": 0.85, "over_at": None}
    assert (await me.get("/usage", created_before=at))["alerts"] == []
    assert (await (await world.user()).get("/usage"))["alerts"] == []


async def test_what_the_dead_have_used_is_usage_too(world: World) -> None:
    me = await world.user()
    ledger = Ledger(world.engine)
    least = ModelUse(tokens_in=30, tokens_out=2, cost_usd=0.25)
    dead = Reservation(
        id=str(uuid7()), payer=Payer(user_id=str(me.id)), model="m", purpose="p", tokens=50, cost_usd=0.5, lease_s=60,
        least=least,
    )  # fmt: skip
    await ledger.reserve([dead])
    assert (await me.get("/usage"))["total"]["tokens_in"] == 0
    await ledger.release([dead.id])
    usage = await me.get("/usage")
    assert usage["total"] == {"tokens_in": 30, "tokens_out": 2, "cost_usd": 0.25}
    assert usage["reserved"] == {"tokens": 0, "cost_usd": 0.0}
    await ledger.close()


async def test_limits_of_a_key_are_read_and_replaced(world: World) -> None:
    admin = await world.user("admin")
    made = (await admin.http.post("/api/v1/keys", json={"user": "key-owner"})).json()
    path = f"/keys/{made['id']}/quota"
    nothing = dict.fromkeys(("max_tokens", "max_cost_usd", "tokens_per_min", "requests_per_min", "max_concurrent"))
    assert await admin.get(path) == nothing
    put = await admin.http.put(f"/api/v1{path}", json={"max_tokens": 5})
    assert put.json() == {**nothing, "max_tokens": 5} == await admin.get(path)
    assert (await admin.http.get(f"/api/v1/keys/{uuid7()}/quota")).status_code == 404
    assert (await admin.http.put(f"/api/v1/keys/{uuid7()}/quota", json={})).status_code == 404
    user = await world.user()
    assert (await user.http.get(f"/api/v1{path}")).status_code == 403


async def test_metrics_tell_of_models_and_limits(world: World) -> None:
    world.fakes.tokens.counted = TokenFigures(
        used=(Used(model="m", purpose="reason", calls=2, tokens_in=3, tokens_out=4, cost_usd=0.5),),
        denied=(("user", "max_tokens", 7),),
        reserved_calls=1,
        reserved_tokens=20,
        reserved_cost_usd=0.25,
        shares=tuple(Share(level="user", id=id_, limit="max_tokens", share=n) for id_, n in (("u", 0.9), ("v", 0.5))),
    )
    admin = await world.user("admin")
    text = (await admin.http.get("/metrics")).text
    for line in (
        'rayloom_model_calls_total{model="m",purpose="reason"} 2.0',
        'rayloom_model_tokens_total{direction="out",model="m",purpose="reason"} 4.0',
        'rayloom_model_cost_usd_total{model="m",purpose="reason"} 0.5',
        'rayloom_reservations_denied_total{level="user",limit="max_tokens"} 7.0',
        "rayloom_reserved_tokens 20.0",
        'rayloom_limit_share_max{level="user",limit="max_tokens"} 0.9',
        'rayloom_limit_share{id="u",level="user",limit="max_tokens"} 0.9',
    ):
        assert line in text
    for client in (world.nobody(), (await world.user()).http):
        open_ = (await client.get("/metrics")).text
        assert 'rayloom_limit_share_max{level="user",limit="max_tokens"} 0.9' in open_
        assert 'id="' not in open_, "ids are for admins"
    assert (await world.nobody_with("rl_unknown").get("/metrics")).status_code == 401


async def test_metrics_and_readiness_are_made_once_for_all_who_ask_at_once(world: World) -> None:
    clients = [world.nobody() for _ in range(40)]
    answers = await asyncio.gather(*(client.get("/metrics") for client in clients))
    assert {answer.status_code for answer in answers} == {200}
    assert world.fakes.tokens.figures_asked == 1
    ready = await asyncio.gather(*(client.get("/readyz") for client in clients))
    assert {answer.status_code for answer in ready} == {200}
    assert world.fakes.tokens.health_asked <= 2, "an answer is half a second old at most"


async def test_readiness_names_every_dependency(world: World) -> None:
    nobody = world.nobody()
    assert (await nobody.get("/healthz")).json() == {"status": "ok"}
    ready = await nobody.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert set(ready.json()["checks"]) == {"database", "redis", "ray", "scheduler", "registry", "tokens", "mcp"}
    for name in ("ray", "scheduler", "registry", "tokens"):
        part = getattr(world.fakes, name)
        part.is_down = True
        answer = await _ready(world, 503)
        assert answer.json()["checks"][name]["status"] == "down"
        assert answer.headers["retry-after"]
        part.is_down = False
        await _ready(world, 200)
    # Most tasks need no MCP server.
    world.fakes.mcp.is_down = True
    await _ready(world, 200, "degraded")
    assert "Degraded: mcp is not answering." in (await nobody.get("/")).text


async def _ready(world: World, status: int, word: str | None = None) -> httpx2.Response:
    """The answer of ``/readyz`` that has this status and word; its checks may be half a second old."""

    async def look() -> httpx2.Response | None:
        answer = await world.nobody().get("/readyz")
        return answer if answer.status_code == status and word in (None, answer.json()["status"]) else None

    return await until(look)


async def test_without_redis_it_is_degraded_and_tasks_are_still_taken(
    database: DatabaseSettings, settings: ServeSettings
) -> None:
    nowhere = RedisSettings(url=SecretStr("redis://127.0.0.1:1/0"))
    async with serving(database, nowhere, settings) as world:
        answer = await world.nobody().get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["status"] == "degraded"
        me = await world.user()
        task_id = await me.submit({"plan": one()})
        assert world.fakes.scheduler.woken == 1
        world.fakes.scheduler.is_down = True
        await me.submit({"plan": one()})
        assert (await me.get(f"/tasks/{task_id}"))["status"] == "PROCESSING"
        assert 'rayloom_up{dependency="redis"} 0.0' in (await me.http.get("/metrics")).text


async def test_without_the_database_everything_says_come_back(redis: RedisSettings, settings: ServeSettings) -> None:
    nowhere = DatabaseSettings(url=SecretStr("postgresql+asyncpg://x:secretword@127.0.0.1:1/x"))
    async with serving(nowhere, redis, settings) as world:
        nobody = world.nobody()
        headers = {"Authorization": f"Bearer {'rl_' + 'x' * 43}"}
        for method, path in (("GET", "/tasks"), ("POST", "/tasks"), ("GET", "/tools"), ("GET", "/keys")):
            answer = await nobody.request(method, f"/api/v1{path}", headers=headers)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"]
            assert "secretword" not in answer.text
        ready = await nobody.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["checks"]["database"]["status"] == "down"
        assert "secretword" not in ready.text
        assert (await nobody.get("/")).status_code == 200
        assert 'rayloom_up{dependency="database"} 0.0' in (await nobody.get("/metrics")).text


async def test_metrics_count_tasks_and_requests(world: World) -> None:
    me = await world.user()
    await me.submit()
    text = (await me.http.get("/metrics")).text
    assert 'rayloom_tasks{status="PROCESSING"}' in text
    assert 'rayloom_subtasks{status="QUEUED"}' in text
    assert re.search(r"^rayloom_tasks_submitted_total \d", text, re.MULTILINE)
    assert re.search(r"^rayloom_attempts_recorded_total \d", text, re.MULTILINE)
    assert "COMPLETED" not in text
    assert 'rayloom_http_request_duration_seconds_count{method="POST",route="/api/v1/tasks",status="202"} 1.0' in text


async def test_pages_need_no_other_host(world: World) -> None:
    nobody = world.nobody()
    for path in ("/", "/docs"):
        page = await nobody.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "{{" not in page.text
        for part in page.text.split('"'):
            assert not part.startswith(("http://", "https://", "//"))
            if part.startswith(("/static/", "/openapi")):
                assert (await nobody.get(part)).status_code == 200
    assert "Ready" in (await nobody.get("/")).text
    world.fakes.tokens.is_down = True

    async def says_so() -> bool:
        return "Not ready" in (await nobody.get("/")).text

    assert await until(says_so)


async def test_openapi_names_every_route_and_every_body(world: World) -> None:
    document = (await world.nobody().get("/openapi.json")).json()
    assert "/api/v1/tasks/{task_id}/trace" in document["paths"]
    body = document["paths"]["/api/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "priority", "plan", "budget", "labels"} <= set(body["properties"])
    approve = document["paths"]["/api/v1/tasks/{task_id}/approve"]["post"]["requestBody"]
    assert approve["required"] is False, "it may be approved without a body"
    assert set(document["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path)), (method, path)
