"""Tools over HTTP: list, switch, register, call."""

from __future__ import annotations

import asyncio

import pytest

from rayloom.dag.ports import Limited
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import World, one, until


async def test_tools_are_listed_with_what_the_contract_shows(world: World) -> None:
    me, admin = await world.user(), await world.user("admin")
    items = (await me.get("/tools"))["items"]
    assert [item["name"] for item in items] == ["core.echo", "core.noop", "core.sleep"]
    assert set(items[0]) == {
        "name", "type", "description", "version", "schema", "output_schema", "permission_level", "is_active", "health",
        "breaker", "stats",
    }  # fmt: skip
    assert "secret.tool" in [item["name"] for item in (await admin.get("/tools"))["items"]]
    assert (await me.http.get("/api/v1/tools/secret.tool")).status_code == 404
    first = await me.get("/tools", limit=2)
    second = await me.get("/tools", limit=2, cursor=first["next_cursor"])
    assert first["items"] + second["items"] == items
    assert second["next_cursor"] is None


async def test_statistics_count_attempts(world: World) -> None:
    me = await world.user()
    before = (await me.get("/tools/core.sleep"))["stats"]["calls"]
    task_id = await me.submit({"plan": one(tool="core.sleep", input={"seconds": 0})})
    await world.run(task_id)

    async def look() -> dict[str, float] | None:
        stats: dict[str, float] = (await me.get("/tools/core.sleep"))["stats"]
        return stats if stats["calls"] == before + 1 else None

    assert (await until(look))["p50_ms"] == pytest.approx(5, abs=1)


async def test_an_entry_point_is_registered_switched_and_removed(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    body = {"type": "NATIVE", "name": "my.tool", "endpoint": "known"}
    made = await admin.http.post("/api/v1/tools/register", json=body)
    assert made.status_code == 201
    assert made.json() == {"name": "my.tool", "type": "NATIVE", "tools": ["my.tool"]}
    assert (await me.get("/tools/my.tool"))["is_active"] is True
    assert (await admin.http.post("/api/v1/tools/register", json=body)).status_code == 409
    unknown = await admin.http.post("/api/v1/tools/register", json={**body, "name": "x", "endpoint": "y"})
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["pointer"] == "/endpoint"
    for name in ("9lives", "skill.x", "a..b", "-x"):
        wrong = await admin.http.post("/api/v1/tools/register", json={**body, "name": name})
        assert wrong.status_code == 422
        assert [error["pointer"] for error in wrong.json()["errors"]] == ["/name"], name
    off = await admin.http.patch("/api/v1/tools/my.tool", json={"is_active": False})
    assert off.json()["is_active"] is False
    refused = await me.http.post("/api/v1/tasks", json={"plan": one(tool="my.tool")})
    assert refused.json()["errors"][0]["pointer"] == "/plan/subtasks/0/tool"
    assert (await me.http.post("/api/v1/tools/my.tool/invoke", json={})).status_code == 409
    assert (await admin.http.patch("/api/v1/tools/my.tool", json={"active": True})).status_code == 422
    assert (await admin.http.delete("/api/v1/tools/my.tool")).status_code == 204
    assert (await me.http.get("/api/v1/tools/my.tool")).status_code == 404
    assert (await admin.http.delete("/api/v1/tools/core.noop")).status_code == 409


async def test_an_mcp_server_is_registered_changed_and_removed(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    body = {"type": "MCP", "name": "far", "transport": "http", "url": "http://there/mcp", "headers": {"x": "y"}}
    assert (await me.http.post("/api/v1/tools/register", json=body)).status_code == 403
    made = await admin.http.post("/api/v1/tools/register", json=body)
    assert (made.status_code, made.headers["location"]) == (201, "/api/v1/tools/far")
    assert made.json() == {"name": "far", "type": "MCP", "tools": ["far.hello"]}
    assert (await admin.http.post("/api/v1/tools/register", json=body)).status_code == 409
    assert (await me.get("/tools/far.hello"))["health"] == "ok"
    # The server itself is for admins.
    assert (await me.http.get("/api/v1/tools/far")).status_code == 404
    assert (await admin.http.get("/api/v1/tools/far")).json() == {"name": "far", "is_active": True}
    off = await admin.http.patch("/api/v1/tools/far", json={"is_active": False})
    assert off.json() == {"name": "far", "is_active": False}
    assert world.fakes.mcp.servers["far"].headers == {"x": "y"}
    assert (await admin.http.delete("/api/v1/tools/far")).status_code == 204
    assert (await me.http.get("/api/v1/tools/far.hello")).status_code == 404
    for method in ("GET", "DELETE"):
        assert (await admin.http.request(method, "/api/v1/tools/far")).status_code == 404
    assert (await admin.http.patch("/api/v1/tools/far", json={"is_active": True})).status_code == 404


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "a.b"}, "/name"),
        ({"transport": "carrier-pigeon"}, "/transport"),
        ({"url": None}, ""),
        ({"transport": "stdio", "url": None}, ""),
        ({"url": "http://gone/"}, "/url"),
        ({"timeout_s": 0}, "/timeout_s"),
        ({"env": {"A": 1}}, "/env/A"),
        ({"auth": {"type": "basic"}}, "/auth/type"),
        ({"auth": {}}, "/auth/type"),
        ({"auth": "x"}, "/auth"),
        ({"auth": {"type": "bearer"}}, "/auth/token"),
        ({"auth": {"type": "bearer", "token": "x", "bearer": 1}}, "/auth/bearer"),
        ({"comand": ["x"]}, "/comand"),
    ],
)
async def test_what_is_wrong_with_an_mcp_server_is_told_with_a_pointer(
    world: World, change: dict[str, object], pointer: str
) -> None:
    admin = await world.user("admin")
    body = {"type": "MCP", "name": "odd", "transport": "http", "url": "http://there/mcp", **change}
    answer = await admin.http.post("/api/v1/tools/register", json=body)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert world.fakes.mcp.servers == {}


async def test_a_change_that_somebody_else_made_is_seen(world: World) -> None:
    me = await world.user()
    assert (await me.http.get("/api/v1/tools/core.noop")).status_code == 200
    await world.fakes.registry.register_native("pushed", "known")

    async def look() -> bool:
        return (await me.http.get("/api/v1/tools/pushed")).status_code == 200

    assert await until(look)


async def test_a_call_waits_for_its_task(world: World) -> None:
    me = await world.user()
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.echo/invoke", json={"input": {"value": 5}}))
    task_id = await me.only_task()
    await world.run(task_id, lambda item: {"echoed": item.input})
    answer = await calling
    assert answer.status_code == 200
    assert answer.json() == {
        "output": {"echoed": '{"value": 5}'},
        "error": None,
        "duration_ms": pytest.approx(5, abs=1),
    }


async def test_the_failure_of_a_called_tool_is_a_200_with_an_error(world: World) -> None:
    me = await world.user()
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={}))
    task_id = await me.only_task()
    [item] = await world.claimed(task_id)
    assert item.max_retries == 0
    await world.fail(item)
    answer = await calling
    assert answer.status_code == 200
    assert answer.json()["output"] is None
    assert answer.json()["error"]["code"] == "BOOM"


async def test_a_cancelled_call_says_so(world: World) -> None:
    me = await world.user()
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={}))
    task_id = await me.only_task()
    await me.http.post(f"/api/v1/tasks/{task_id}/cancel")
    assert (await calling).json()["error"]["code"] == "CANCELLED"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"input": {}}, "/input"),
        ({"input": {"value": 1, "more": 2}}, "/input"),
        ({"input": {"value": {"$ref": "other.output"}}}, "/input/value"),
        ({"input": []}, "/input"),
        ({"inputs": {}}, "/inputs"),
        ({"input": {"value": 1}, "timeout_s": 0}, "/timeout_s"),
        ({"input": {"value": 1}, "timeout_s": 1e9}, "/timeout_s"),
    ],
)
async def test_a_bad_call_is_refused_with_a_pointer(world: World, body: dict[str, object], pointer: str) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tools/core.echo/invoke", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith(pointer)
    assert (await me.get("/tasks"))["items"] == []


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"input": {}, "timeout_s": 0}, ["/timeout_s", "/input/value"]),
        ({"input": {}, "timeout_s": 1e9}, ["/timeout_s", "/input/value"]),
        ({"timeout_s": 0, "zzz": 1}, ["/timeout_s", "/zzz", "/input/value"]),
        ({"input": [], "zzz": 1}, ["/input", "/zzz"]),
        ({"input": {"value": 1}, "timeout_s": 0}, ["/timeout_s"]),
    ],
)
async def test_all_that_is_wrong_with_a_call_is_told_at_once(
    world: World, body: dict[str, object], pointers: list[str]
) -> None:
    me = await world.user()
    answer = await me.http.post("/api/v1/tools/core.echo/invoke", json=body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == pointers
    assert answer.json()["type"] == "urn:rayloom:problem:invalid"


class TestImpatience:
    """A replica that does not let calls wait."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(invoke_queue_s=0.05)

    async def test_a_call_that_gets_no_turn_is_cancelled(self, world: World) -> None:
        me = await world.user()
        answer = await me.http.post("/api/v1/tools/core.noop/invoke", json={"timeout_s": 0.05})
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the call did not get its turn within 0.1 s, and was cancelled"
        assert (await me.get("/tasks"))["items"][0]["status"] == "CANCELLED"

    async def test_a_call_that_a_limit_held_back_is_told_which(self, world: World) -> None:
        me = await world.user()
        # At first there was room.
        world.fakes.tokens.limited_at = (1, Limited(limit="max_concurrent", free_in_s=0.0))
        answer = await me.http.post("/api/v1/tools/core.noop/invoke", json={"timeout_s": 0.05})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "max_concurrent" in answer.json()["detail"]
        assert (await me.get("/tasks"))["items"][0]["status"] == "CANCELLED"

    async def test_a_call_that_runs_too_late_is_stopped(self, world: World) -> None:
        me = await world.user()
        calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={"timeout_s": 4}))
        [item] = await world.claimed(await me.only_task())
        answer = await calling
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the call was not over within 4.05 s, and was cancelled"
        assert world.fakes.scheduler.stopped == [(item.sub_task_id, 1)]

    async def test_a_call_that_ended_at_the_last_moment_is_answered(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr("rayloom.serve.routes.invocations._ended", never)
        me = await world.user()
        calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={"timeout_s": 6}))
        await world.run(await me.only_task(), lambda _: "done")
        answer = await calling
        assert (answer.status_code, answer.json()["output"]) == (200, "done")


@pytest.mark.parametrize(("free_in_s", "retry_after"), [(None, "60"), (44.1, "45")])
async def test_a_call_that_a_limit_holds_for_longer_than_it_may_wait_is_refused_at_once(
    world: World, free_in_s: float | None, retry_after: str
) -> None:
    me = await world.user()
    world.fakes.tokens.limited_at = (0, Limited(limit="requests_per_min", free_in_s=free_in_s))
    answer = await me.http.post("/api/v1/tools/core.noop/invoke", json={})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, retry_after)
    assert answer.json()["detail"] == "the limit requests_per_min of your quota holds the call back"
    assert (await me.get("/tasks"))["items"] == []
    # What is wrong with it is worth more to know.
    wrong = await me.http.post("/api/v1/tools/core.noop/invoke", json={"input": {"x": 1}})
    assert wrong.status_code == 422


async def test_a_call_goes_on_while_nobody_knows_the_limits(world: World) -> None:
    me = await world.user()
    world.fakes.tokens.is_down = True
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={}))
    await world.run(await me.only_task(), lambda _: 1)
    assert (await calling).status_code == 200


async def test_without_a_registry_plans_can_not_be_judged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.serve.offered.FIRST_ANSWER_S", 0.05)
    me = await world.user()
    world.deps.offered._snapshot = None
    world.deps.offered._arrived.clear()
    answer = await me.http.post("/api/v1/tasks", json={"plan": one()})
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_a_plan_is_made_of_a_prompt_and_nothing_is_stored(world: World) -> None:
    me = await world.user()
    prompt = '1. @core.echo {"value": 1}\n2. @core.noop {}'
    answer = await me.http.post("/api/v1/plans", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    made = answer.json()
    promised = {"plan", "source", "repairs", "width", "critical_path", "estimate", "usage", "warnings"}
    assert set(made) == promised | {"brief"}
    assert made["source"] == "outline"
    assert [item["tool"] for item in made["plan"]["subtasks"]] == ["core.echo", "core.noop"]
    assert (await me.get("/tasks"))["items"] == []


async def test_an_admin_opens_and_closes_a_breaker_and_calls_fail_at_once(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    path = "/api/v1/tools/core.echo"
    assert (await me.http.patch(path, json={"breaker": "open"})).status_code == 403
    assert (await admin.http.patch(path, json={})).status_code == 422
    assert (await admin.http.patch(path, json={"breaker": "ajar"})).status_code == 422
    opened = await admin.http.patch(path, json={"breaker": "open"})
    assert opened.json()["breaker"] == {"state": "open", "retry_at": None}
    assert (await me.get("/tools/core.echo"))["breaker"]["state"] == "open"
    answer = await me.http.post(f"{path}/invoke", json={"input": {"value": 1}})
    assert answer.status_code == 200
    error = answer.json()["error"]
    assert (error["code"], error["class"], error["retryable"]) == ("BREAKER_OPEN", "transient", True)
    assert int(answer.headers["retry-after"]) > 0
    assert (await me.get("/tasks"))["items"] == []
    assert "rayloom_breaker_state{" in (await me.http.get("/metrics")).text
    closed = await admin.http.patch(path, json={"breaker": "closed"})
    assert closed.json()["breaker"] == {"state": "closed", "retry_at": None}


async def test_a_call_that_waits_is_withdrawn_when_the_breaker_opens(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    calling = asyncio.create_task(me.http.post("/api/v1/tools/core.noop/invoke", json={}))

    async def waits() -> bool:
        return [item["status"] for item in (await me.get("/tasks"))["items"]] == ["PROCESSING"]

    await until(waits)
    await admin.http.patch("/api/v1/tools/core.noop", json={"breaker": "open"})
    assert (await calling).json()["error"]["code"] == "BREAKER_OPEN"
    assert [item["status"] for item in (await me.get("/tasks"))["items"]] == ["CANCELLED"]
    await admin.http.patch("/api/v1/tools/core.noop", json={"breaker": "closed"})


async def test_an_alternative_is_named_and_taken_away(world: World) -> None:
    admin = await world.user("admin")
    path = "/api/v1/tools/core.sleep"
    wrong = await admin.http.patch(path, json={"alternative": "nothing"})
    assert (wrong.status_code, wrong.json()["errors"][0]["pointer"]) == (422, "/alternative")
    assert (await admin.http.patch(path, json={"alternative": "secret.tool"})).status_code == 422
    assert (await admin.http.patch(path, json={"alternative": "core.noop"})).status_code == 200
    assert (await admin.http.patch(path, json={"alternative": None})).status_code == 200


async def test_what_is_changed_is_known_to_the_scheduler_before_the_answer(world: World) -> None:
    admin, scheduler = await world.user("admin"), world.fakes.scheduler
    before = scheduler.tools_version
    assert (await admin.http.patch("/api/v1/tools/core.sleep", json={"breaker": "open"})).status_code == 200
    assert scheduler.tools_version > before
    # Without a scheduler it is changed all the same: the next one asks before it starts anything.
    scheduler.is_down = True
    answer = await admin.http.patch("/api/v1/tools/core.sleep", json={"breaker": "closed"})
    assert (answer.status_code, answer.json()["breaker"]["state"]) == (200, "closed")
