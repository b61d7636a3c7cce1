"""Whatever comes in, the answer is ours: a problem document with the right status, and never a 500."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import httpx2
import pytest

from rayloom.dag.errors import Transient
from rayloom.dag.values import Json, JsonObject
from rayloom.db import keys
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import Person, World, one, until
from tests.integration.waiting import GENEROUS_S

JSON = {"Content-Type": "application/json"}


def _problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(problem)
    assert problem["status"] == status
    return problem


BODIES: list[tuple[bytes, int, str | None]] = [
    (b"", 400, None),
    (b"   ", 400, None),
    (b"{", 400, None),
    (b"nonsense", 400, None),
    (b"\xff\xfe", 400, None),
    (b'{"prompt": "\xff"}', 400, None),
    (b'{"prompt": NaN}', 422, "/prompt"),
    (b'{"budget": {"max_cost_usd": 1e999}, "prompt": "x"}', 422, "/budget/max_cost_usd"),
    (b"[]", 422, ""),
    (b"null", 422, ""),
    (b"1", 422, ""),
    (b'"text"', 422, ""),
    (b"[" * 100_000, 400, None),
    (b"[" * 100_000 + b"]" * 100_000, 422, ""),
    (b'{"context": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001, 422, "/context" + "/a" * 63),
    (b'{"context": ' + b'{"a":' * 500 + b"1" + b"}" * 501, 422, None),
    (b'{"prompt": "a\\u0000b"}', 422, "/prompt"),
    (b'{"prompt": "\\ud800"}', 422, "/prompt"),
    (b'{"prompt": "x", "context": {"a\\u0000": 1}}', 422, "/context"),
    (b'{"prompt": "x", "context": {"deep": ["\\u0000"]}}', 422, "/context/deep/0"),
    (b'{"prompt": "x", "priority": 99999999999999999999999999}', 422, "/priority"),
    (b'{"prompt": "x", "context": {"a": 99999999999999999999}}', 422, "/context/a"),
    (b'{"prompt": "x", "context": {"a": ' + b"9" * 5_000 + b"}}", 422, "/context/a"),
    (b'{"prompt": "x", "priority": 0}', 422, "/priority"),
    (b'{"prompt": "x", "priority": 11}', 422, "/priority"),
    (b'{"prompt": "x", "priority": 5.0}', 422, "/priority"),
    (b'{"prompt": "x", "priority": "5"}', 422, "/priority"),
    (b'{"prompt": "x", "priority": true}', 422, "/priority"),
    (b'{"prompt": "x", "priority": null}', 422, "/priority"),
    (b"{}", 422, "/prompt"),
    (b'{"prompt": null}', 422, "/prompt"),
    (b'{"prompt": ""}', 422, "/prompt"),
    (b'{"prompt": " \\n "}', 422, "/prompt"),
    (b'{"prompt": 5}', 422, "/prompt"),
    (b'{"prompt": "' + b"x" * 100_001 + b'"}', 422, "/prompt"),
    (b'{"prompt": "x", "promt": 1}', 422, "/promt"),
    (b'{"prompt": "x", "a/b~c": 1}', 422, "/a~1b~0c"),
    (b'{"prompt": "x", "title": ""}', 422, "/title"),
    (b'{"prompt": "x", "title": "' + b"t" * 301 + b'"}', 422, "/title"),
    (b'{"prompt": "x", "context": []}', 422, "/context"),
    (b'{"prompt": "x", "labels": {"a": 1}}', 422, "/labels/a"),
    (b'{"prompt": "x", "labels": []}', 422, "/labels"),
    (b'{"prompt": "x", "budget": {"deadline_s": 0}}', 422, "/budget/deadline_s"),
    (b'{"prompt": "x", "budget": {"deadline_s": 1e300}}', 422, "/budget/deadline_s"),
    (b'{"prompt": "x", "budget": {"max_tokens": 1.5}}', 422, "/budget/max_tokens"),
    (b'{"prompt": "x", "budget": {"tokens": 1}}', 422, "/budget/tokens"),
    (b'{"prompt": "x", "tools": {"allow": "core.*"}}', 422, "/tools/allow"),
    (b'{"prompt": "x", "tools": {"allow": [""]}}', 422, "/tools/allow/0"),
    (b'{"prompt": "x", "require_approval": "no"}', 422, "/require_approval"),
    (b'{"prompt": "x", "callback_url": 5}', 422, "/callback_url"),
    (b'{"prompt": "x", "callback_url": "example.org"}', 422, "/callback_url"),
    (b'{"prompt": "x", "callback_url": "http://127.0.0.1:1/"}', 422, "/callback_url"),
    (b'{"prompt": "x", "callback_url": "http://169.254.169.254/"}', 422, "/callback_url"),
    (b'{"prompt": "x", "callback_url": "https://example.org", "callback_secret": "s"}', 422, "/callback_secret"),
    (b'{"prompt": "x", "callback_secret": "whsec_AAAA"}', 422, "/callback_secret"),
    (b'{"plan": []}', 422, "/plan"),
    (b'{"plan": {}}', 422, "/plan/subtasks"),
    (b'{"plan": {"subtasks": []}}', 422, "/plan/subtasks"),
    (b'{"plan": {"subtasks": [1]}}', 422, "/plan/subtasks/0"),
    (b'{"plan": {"subtasks": [{"id": "a", "type": "TOOL", "tool": "core.nop"}]}}', 422, "/plan/subtasks/0/tool"),
    (b'{"plan": {"subtasks": [{"id": "a", "type": "TOOL", "tool": "secret.tool"}]}}', 422, "/plan/subtasks/0/tool"),
]


async def test_every_bad_submission_is_refused_with_its_pointer(world: World) -> None:
    me = await world.user()
    wrong = []
    for body, status, pointer in BODIES:
        answer = await me.http.post("/api/v1/tasks", content=body, headers=JSON)
        problem = _problem(answer, answer.status_code)
        pointers = [error["pointer"] for error in problem.get("errors", [])]
        if answer.status_code != status or (pointer is not None and pointers != [pointer]):
            wrong.append((body[:80], answer.status_code, pointers))
    assert wrong == []
    assert (await me.get("/tasks"))["items"] == []


NOOP: JsonObject = {"type": "TOOL", "tool": "core.noop"}
CYCLE: list[Json] = [{**NOOP, "id": "a", "depends_on": ["b"]}, {**NOOP, "id": "b", "depends_on": ["a"]}]
CLOSED = "/plan/subtasks/0/depends_on/0"


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        # A body and its plan, by the rules of the body as far as they are sound.
        (
            {"priority": 0, "plan": {"subtasks": [*CYCLE, {**NOOP, "id": "c", "tool": "no.such"}]}},
            ["/priority", "/plan/subtasks/2/tool", CLOSED],
        ),
        (
            {"title": 1, "tools": {"deny": ["core.*"]}, "plan": one()},
            ["/title", "/plan/subtasks/0/tool"],
        ),
        ({"tools": {"deny": 1}, "plan": one(tool="no.such")}, ["/tools/deny", "/plan/subtasks/0/tool"]),
        ({"prompt": " ", "plan": {"subtasks": 1}}, ["/prompt", "/plan/subtasks"]),
        ({"priority": 0, "plan": one()}, ["/priority"]),
        # The shape of some subtasks, and what is said of the others.
        (
            {"plan": {"subtasks": [*CYCLE, {**NOOP, "id": "c", "tool": "no.such", "timeout_s": 0}], "x": 1}},
            ["/plan/subtasks/2/timeout_s", "/plan/x", "/plan/subtasks/2/tool", CLOSED],
        ),
        # What waits for a subtask that is not known in full waits for something that is there.
        (
            {
                "plan": {
                    "subtasks": [
                        {"id": "a", "type": "TOLL", "tool": "no.such"},
                        {**NOOP, "id": "b", "depends_on": ["a", "z"]},
                        {"id": "c", "type": "TOOL", "tool": "core.echo", "input": {"value": "${a.output} ${y.output}"}},
                    ]
                }
            },
            ["/plan/subtasks/0/type", "/plan/subtasks/1/depends_on/1", "/plan/subtasks/2/input/value"],
        ),
        # Who is meant by an id that nobody has can't be said while somebody has none.
        ({"plan": {"subtasks": [NOOP, {**NOOP, "id": "b", "depends_on": ["a"]}]}}, ["/plan/subtasks/0/id"]),
    ],
)
async def test_every_fault_of_a_submission_is_told_at_once(world: World, body: JsonObject, pointers: list[str]) -> None:
    me = await world.user()
    problem = _problem(await me.http.post("/api/v1/tasks", json=body), 422)
    assert [error["pointer"] for error in problem["errors"]] == pointers


async def test_no_more_than_a_hundred_faults_are_told(world: World) -> None:
    me = await world.user()
    subtasks: list[Json] = [{**NOOP, "id": f"s{number}", "tool": "no.such"} for number in range(200)]
    for body in ({"priority": 0}, {"plan": {"x": 1}}):
        plan = {**body.get("plan", {}), "subtasks": subtasks}  # type: ignore[dict-item]
        problem = _problem(await me.http.post("/api/v1/tasks", json={**body, "plan": plan}), 422)
        assert len(problem["errors"]) == 100


async def test_while_nobody_knows_the_tools_the_faults_of_a_body_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown() -> None:
        raise Transient("REGISTRY_UNAVAILABLE", "it does not answer")

    monkeypatch.setattr(world.deps.offered, "all", unknown)
    me = await world.user()
    for plan, pointers in ((one(tool="no.such"), []), (one(timeout_s=0), ["/plan/subtasks/0/timeout_s"])):
        problem = _problem(await me.http.post("/api/v1/tasks", json={"priority": 0, "plan": plan}), 422)
        assert [error["pointer"] for error in problem["errors"]] == ["/priority", *pointers]
    _problem(await me.http.post("/api/v1/tasks", json={"plan": one()}), 503)


async def test_routes_that_take_no_body_refuse_one(world: World) -> None:
    admin = await world.user("admin")
    task_id = await admin.submit()
    (item,) = await world.claimed(task_id)
    await world.fail(item)
    (letter,) = (await admin.get("/dead-letters"))["items"]
    other_id = await admin.submit()
    await world.fakes.registry.register_native("put.away", "known")
    key = (await admin.http.post("/api/v1/keys", json={"user": f"gone-{task_id}"})).json()
    routes = (
        ("POST", f"/tasks/{other_id}/cancel", 202, b"{}"), ("POST", f"/dead-letters/{letter['id']}/discard", 200, b" "),
        ("DELETE", f"/keys/{key['id']}", 204, b""), ("DELETE", "/tools/put.away", 204, b"{ }"),
    )  # fmt: skip
    for method, path, status, nothing in routes:
        for body, refused, pointers in ((b'{"zzz": 1}', 422, ["/zzz"]), (b"[]", 422, [""]), (b"{not json", 400, [])):
            answer = await admin.http.request(method, f"/api/v1{path}", content=body, headers=JSON)
            problem = _problem(answer, refused)
            assert [error["pointer"] for error in problem.get("errors", [])] == pointers
        answer = await admin.http.request(method, f"/api/v1{path}", content=nothing, headers=JSON)
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize("path", ["/keys", "/tools/register", "/tools/core.noop/invoke", "/plans"])
async def test_every_route_with_a_body_refuses_what_is_no_json_object(world: World, path: str) -> None:
    admin = await world.user("admin")
    for body, status, _ in BODIES[:20]:
        answer = await admin.http.post(f"/api/v1{path}", content=body, headers=JSON)
        _problem(answer, answer.status_code)
        assert answer.status_code in (400, 422), (body[:80], status)


async def test_a_budget_is_taken_without_a_warning(world: World) -> None:
    me = await world.user()
    budget: JsonObject = {"max_tokens": 100_000, "max_cost_usd": 1.0, "deadline_s": 3600}
    await me.submit({"plan": one(), "budget": budget})
    planned = (await me.http.post("/api/v1/plans", json={"prompt": "x", "budget": budget})).json()
    assert not [line for line in planned["warnings"] if "budget" in line]


@pytest.mark.parametrize("name", ["", "x" * 256, "a\tb", "ä"])
async def test_a_bad_idempotency_key_is_refused(world: World, name: str) -> None:
    me = await world.user()
    headers = {"Idempotency-Key": name.encode("latin-1")}
    problem = _problem(await me.http.post("/api/v1/tasks", json={"plan": one()}, headers=headers), 422)  # type: ignore[arg-type]
    assert problem["errors"][0]["pointer"] == "/headers/Idempotency-Key"


async def test_the_loser_of_a_race_for_an_idempotency_key_gets_the_same_refusal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_yet(*_: object) -> None:
        """Neither of the two has seen the other when it looks."""

    monkeypatch.setattr("rayloom.db.reads.submitted_before", not_yet)
    me = await world.user()
    headers = {"Idempotency-Key": "one"}
    bodies = [{"plan": one(), "title": title} for title in ("a", "b")]
    answers = await asyncio.gather(*(me.http.post("/api/v1/tasks", json=body, headers=headers) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [202, 422]
    problem = _problem(next(answer for answer in answers if answer.status_code == 422), 422)
    assert problem["type"] == "urn:rayloom:problem:idempotency-mismatch"
    assert [error["pointer"] for error in problem["errors"]] == ["/headers/Idempotency-Key"]


async def test_another_media_type_is_refused(world: World) -> None:
    me = await world.user()
    _problem(await me.http.post("/api/v1/tasks", content=b"a=1", headers={"Content-Type": "text/plain"}), 415)


async def test_a_large_body_is_refused_however_it_is_sent(world: World) -> None:
    me = await world.user()
    large = b'{"prompt": "' + b" " * 2_000_001 + b'"}'
    _problem(await me.http.post("/api/v1/tasks", content=large, headers=JSON), 413)

    async def chunks() -> Any:
        for start in range(0, len(large), 100_000):
            yield large[start : start + 100_000]

    try:
        answer = await me.http.post("/api/v1/tasks", content=chunks(), headers=JSON)
    except httpx2.WriteError:
        return  # the answer came, and the connection closed, before all was sent
    _problem(answer, 413)


async def test_without_a_good_key_nothing_is_served(world: World) -> None:
    nobody = world.nobody()
    paths = ["/tasks", f"/tasks/{'0' * 8}", "/tools", "/keys", "/usage", "/dead-letters"]
    for headers in ({}, {"Authorization": "Bearer rl_wrong"}, {"Authorization": "Basic eDp5"}, {"X-API-Key": "x" * 60}):
        for path in paths:
            answer = await nobody.get(f"/api/v1{path}", headers=headers)
            _problem(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    _problem(await nobody.post("/mcp"), 401)
    me = await world.user()
    assert (await nobody.get("/api/v1/tasks", headers={"X-API-Key": me.key})).status_code == 200


async def test_a_short_key_that_somebody_chose_opens_the_door(world: World) -> None:
    key = secrets.token_hex(4)
    await keys.ensure_admin(world.engine, key=key, user="chose-a-short-key")
    nobody = world.nobody()
    for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
        assert (await nobody.get("/api/v1/keys", headers=headers)).status_code == 200
    for wrong in (key[:-1], key + "0", "x", "x" * 10_000):
        _problem(await nobody.get("/api/v1/keys", headers={"X-API-Key": wrong}), 401)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1/nowhere", 404),
        ("GET", "/api/v1/tasks/", 404),
        ("GET", "/api/v1/tasks/not-a-uuid", 404),
        ("GET", "/api/v1/tasks/019ad0b4-0000-7000-8000-000000000000", 404),
        ("GET", "/api/v1/tasks/%ff%fe", 404),
        ("GET", "/static/secrets", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("POST", "/api/v1/tasks/x/cancel", 404),
        ("DELETE", "/api/v1/tasks", 405),
        ("PUT", "/healthz", 405),
        ("OPTIONS", "/api/v1/tasks", 405),
        ("PATCH", "/api/v1/tasks", 405),
        ("GET", "/mcp", 405),
        ("DELETE", "/mcp", 405),
        ("PUT", "/mcp", 405),
        ("GET", "/api/v1/tools/nothing", 404),
        ("GET", "/api/v1/quotas/x", 404),
        ("DELETE", "/api/v1/keys/x", 404),
    ],
)
async def test_wrong_paths_and_methods_are_problems(world: World, method: str, path: str, status: int) -> None:
    admin = await world.user("admin")
    answer = await admin.http.request(method, path)
    _problem(answer, status)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/api/v1/tasks/%00", "/%00", "/api/v1/tools/core%00noop", "/static/a%00.css"])
async def test_a_nul_in_a_path_is_refused_with_a_pointer(world: World, path: str) -> None:
    admin = await world.user("admin")
    problem = _problem(await admin.http.get(path), 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/path"]


async def test_405_names_every_method_of_the_path(world: World) -> None:
    admin = await world.user("admin")
    answer = await admin.http.delete("/api/v1/tasks")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("path", ["/api/v1/tasks", "/healthz", "/", "/api/v1/tools"])
async def test_head_answers_like_get_without_a_body(world: World, path: str) -> None:
    me = await world.user()
    got, head = await me.http.get(path), await me.http.head(path)
    assert head.status_code == got.status_code
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.content == b""


async def test_users_may_not_do_what_admins_do(world: World) -> None:
    me = await world.user()
    for method, path in (
        ("GET", "/keys"), ("POST", "/keys"), ("DELETE", "/keys/x"), ("POST", "/tools/register"),
        ("PATCH", "/tools/core.noop"), ("DELETE", "/tools/core.noop"),
        ("GET", f"/quotas/{me.id}"), ("PUT", f"/quotas/{me.id}"), ("GET", "/keys/x/quota"), ("PUT", "/keys/x/quota"),
    ):  # fmt: skip
        _problem(await me.http.request(method, f"/api/v1{path}"), 403)


async def test_an_unforeseen_error_is_a_500_that_tells_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("the inside")

    me = await world.user()
    monkeypatch.setattr("rayloom.db.reads.list_tasks", broken)
    with caplog.at_level(logging.ERROR):
        answer = await me.http.get("/api/v1/tasks")
    _problem(answer, 500)
    assert "inside" not in answer.text
    assert "request.failed" in caplog.text


async def test_resources_are_judged_by_the_last_known_nodes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.serve.deps.NODES_TTL_S", 0.0)
    me = await world.user()
    plan = {"plan": one(resources={"num_cpus": 1000})}

    async def pointers() -> list[str]:
        problem = _problem(await me.http.post("/api/v1/tasks", json=plan), 422)
        return [error["pointer"] for error in problem["errors"]]

    known = await pointers()
    assert known[0].startswith("/plan/subtasks/0/resources")
    world.fakes.scheduler.is_down = True
    assert await pointers() == known
    world.fakes.scheduler.is_down = False
    world.fakes.scheduler.node_types = ()
    assert await pointers() == known


async def test_resources_are_not_judged_by_a_cluster_that_nobody_knows(world: World) -> None:
    world.fakes.scheduler.is_down = True
    me = await world.user()
    await me.submit({"plan": one(resources={"num_cpus": 1000})})


class TestAFullHouse:
    """Limits of a replica that takes one request and one stream at a time."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(admission_requests=1, admission_streams=1, request_timeout_s=4, submit_timeout_s=8)

    async def test_more_requests_are_told_to_come_back(self, world: World) -> None:
        me = await world.user()
        slow = asyncio.create_task(_send_slowly(world, me))

        async def look() -> bool:
            return "rayloom_http_requests_open 1.0" in (await me.http.get("/metrics")).text

        assert await until(look)
        answer = await me.http.get("/api/v1/tasks")
        assert _problem(answer, 503)["type"] == "urn:rayloom:problem:overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert (await me.http.get("/healthz")).status_code == 200
        async with asyncio.timeout(GENEROUS_S):
            assert (await slow).startswith(b"HTTP/1.1 408 ")

    async def test_more_streams_are_told_to_come_back_and_requests_go_on(self, world: World) -> None:
        me = await world.user()
        task_id = await me.submit()
        path = f"/api/v1/tasks/{task_id}/events"
        async with me.http.stream("GET", path) as response:
            assert response.status_code == 200
            _problem(await me.http.get(path), 503)
            assert (await me.http.get("/api/v1/tasks")).status_code == 200

    async def test_a_stream_outlives_the_time_limit_of_requests(self, world: World) -> None:
        me = await world.user()
        task_id = await me.submit()
        async with me.http.stream("GET", f"/api/v1/tasks/{task_id}/events") as response:
            lines = response.aiter_lines()
            while await anext(lines) != "event: task":
                pass
            await asyncio.sleep(4.3)
            await world.run(task_id)
            rest = [line async for line in lines]
        assert '"to":"COMPLETED"' in "".join(rest)


async def _send_slowly(world: World, me: Person) -> bytes:
    """The raw answer to a request whose body never comes to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(world.url).port)
    head = f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {me.key}\r\nContent-Length: 10\r\n\r\n{{"
    writer.write(head.encode())
    try:
        return await reader.readuntil(b"}")
    finally:
        writer.close()
        await writer.wait_closed()
