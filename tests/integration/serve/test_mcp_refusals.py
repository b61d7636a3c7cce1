"""Whatever comes to /mcp, the answer is a problem document or a message of JSON-RPC, in time, and never a 500."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import httpx2
import orjson
import pytest

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.world import Person, World
from tests.integration.waiting import GENEROUS_S

HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
META: Final[JsonObject] = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
PING: Final = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'


def _call(tool: str, arguments: JsonObject) -> JsonObject:
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


@pytest.fixture
def settings() -> ServeSettings:
    return ServeSettings(public_url="https://rayloom.example", mcp_hosts=("rayloom.default.svc",))


async def _post(person: Person, body: bytes | JsonObject, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    async with asyncio.timeout(GENEROUS_S):
        return await person.http.post("/mcp", content=content, headers=HEADERS | headers)


def _message(answer: httpx2.Response) -> dict[str, Any]:
    """The one message of JSON-RPC that an answer is."""
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        (text,) = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    message: dict[str, Any] = orjson.loads(text)
    assert message["jsonrpc"] == "2.0"
    return message


def _problem(answer: httpx2.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    return problem


async def test_a_key_is_needed(world: World) -> None:
    me = await world.user()
    for headers in ({}, {"Authorization": "Bearer nobody"}, {"X-API-Key": "nobody"}, {"Authorization": "Basic eA=="}):
        answer = await world.nobody().post("/mcp", content=PING, headers=HEADERS | headers)
        assert _problem(answer, 401)["type"] == "urn:rayloom:problem:unauthorized"
        assert answer.headers["www-authenticate"] == 'Bearer realm="rayloom"'
    answer = await world.nobody().post("/mcp", content=PING, headers=HEADERS | {"X-API-Key": me.key})
    assert _message(answer)["result"] == {}


async def test_a_key_that_is_revoked_is_refused_at_the_next_request(world: World) -> None:
    admin, me = await world.user("admin"), await world.user()
    assert (await _post(me, PING)).status_code == 200
    assert (await admin.http.delete(f"/api/v1/keys/{me.key_id}")).status_code == 204
    _problem(await _post(me, PING), 401)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8000"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Origin": "http://203.0.113.7"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "10.1.2.3:8000"}, 200),
        ({"Host": "RAYLOOM.example"}, 200),
        ({"Host": "rayloom.default.svc:8000"}, 200),
        ({"Host": "rayloom.example:443", "Origin": "https://rayloom.example"}, 200),
        ({"Origin": "http://localhost:6274"}, 200),
    ],
)
async def test_a_name_or_a_page_of_somebody_else_is_refused(world: World, headers: dict[str, str], status: int) -> None:
    me = await world.user()
    answer = await _post(me, PING, **headers)
    assert answer.status_code == status, answer.text
    if status != 200:
        _problem(answer, status)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
async def test_another_media_type_is_refused(world: World, kind: str) -> None:
    me = await world.user()
    _problem(await _post(me, PING, **{"Content-Type": kind}), 415)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "text/html", "nonsense"])
async def test_who_can_not_take_the_answer_is_told(world: World, accept: str) -> None:
    me = await world.user()
    _problem(await _post(me, PING, Accept=accept), 406)


async def test_a_session_that_somebody_made_up_is_none_and_does_no_harm(world: World) -> None:
    me = await world.user()
    answer = await _post(me, PING, **{"Mcp-Session-Id": "made-up", "Last-Event-ID": "7"})
    assert _message(answer)["result"] == {}
    assert "mcp-session-id" not in answer.headers


NO_MESSAGES: Final[list[tuple[bytes, int]]] = [
    (b"", -32700),
    (b"{", -32700),
    (b"nonsense", -32700),
    (b"\xff\xfe", -32700),
    (b"[" * 100_000, -32700),
    (b"[]", -32600),
    (b"[" + PING + b"," + PING + b"]", -32600),
    (b"null", -32600),
    (b"1", -32600),
    (b'"text"', -32600),
    (b"{}", -32600),
    (b'{"id": 1, "method": "ping"}', -32600),
    (b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": 1, "method": 5}', -32600),
    (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": true, "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": [], "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": ' + b"9" * 5000 + b', "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}', -32600),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "\\u0000"}', -32600),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {"x": NaN}}', -32600),
    (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": ' + b'{"a":' * 500 + b"1" + b"}" * 501, -32600),
]


@pytest.mark.parametrize("revision", ["", "2025-11-25", "2026-07-28", "2099-01-01"])
async def test_what_is_no_message_is_refused(world: World, revision: str) -> None:
    me = await world.user()
    for body, code in NO_MESSAGES:
        answer = await _post(me, body, **({"MCP-Protocol-Version": revision} if revision else {}))
        assert answer.status_code == 400, (body[:80], answer.text)
        assert _message(answer)["error"]["code"] == code, (body[:80], answer.text)


METHODS: Final = (
    "nonsense", "x" * 10_000, "", "initialize", "tools/list", "tools/call", "server/discover", "logging/setLevel",
    "subscriptions/listen", "resources/list", "resources/read", "prompts/get", "completion/complete", "tasks/get",
)  # fmt: skip
PARAMS: Final[list[Json]] = [
    None,
    {},
    [],
    5,
    {"name": 1},
    {"name": "nope"},
    {"cursor": "x"},
    {"name": "get_task", "arguments": []},
    {"name": "get_task", "_meta": 5},
    {"name": "get_task", "arguments": {"task_id": "x"}, "_meta": {"progressToken": {}}},
    {"protocolVersion": 5},
    {"protocolVersion": "1999-01-01", "capabilities": {}, "clientInfo": {"name": "", "version": ""}},
]


@pytest.mark.parametrize("revision", ["", "2025-11-25", "2026-07-28", "2099-01-01", "x" * 1000])
async def test_every_message_is_answered_with_one(world: World, revision: str) -> None:
    me = await world.user()
    for method, params in itertools.product(METHODS, PARAMS):
        message: JsonObject = {"jsonrpc": "2.0", "id": "i", "method": method, "params": params}
        headers = {"MCP-Protocol-Version": revision} if revision else {}
        if revision == "2026-07-28" and isinstance(params, dict):
            message["params"] = {"_meta": META, **params}
            headers["Mcp-Method"] = method
            if "name" in params:
                headers["Mcp-Name"] = str(params["name"])
        answer = await _post(me, message, **headers)
        assert answer.status_code in (200, 400, 404), (method, params, answer.text)
        told = _message(answer)
        assert ("error" in told) != ("result" in told), (method, params, told)


async def test_notifications_and_answers_that_nobody_waits_for_are_taken(world: World) -> None:
    me = await world.user()
    parts: list[JsonObject] = [
        {"method": "notifications/initialized"},
        {"method": "notifications/cancelled", "params": {"requestId": 1}},
        {"method": "notifications/nonsense", "params": {"x": [1]}},
        {"id": 1, "result": {}},
    ]
    for part in parts:
        assert (await _post(me, {"jsonrpc": "2.0", **part})).status_code == 202


async def test_text_that_can_not_be_stored_is_refused_with_its_place(world: World) -> None:
    me = await world.user()
    answer = await _post(me, _call("submit_task", {"prompt": "a\0b"}))
    assert (answer.status_code, _message(answer)["id"]) == (400, 7)
    assert "/params/arguments/prompt" in _message(answer)["error"]["message"]
    assert (await me.get("/tasks"))["items"] == []


async def test_a_body_is_as_large_as_it_may_be_and_no_larger(world: World) -> None:
    me = await world.user()
    filled = orjson.dumps(_call("submit_task", {"prompt": "x", "context": {"text": ""}}))
    for size, status in ((4 * 1024 * 1024, 200), (4 * 1024 * 1024 + 1, 413)):
        body = filled.replace(b'"text":""', b'"text":"' + b"x" * (size - len(filled)) + b'"')
        answer = await _post(me, body)
        assert answer.status_code == status, answer.text[:500]
        if status == 413:
            assert _problem(answer, 413)["type"] == "urn:rayloom:problem:body-too-large"
        else:
            assert _message(answer)["result"]["isError"] is False, answer.text[:500]


async def test_a_body_of_many_values_holds_nobody_up_for_long(world: World) -> None:
    me = await world.user()
    body = orjson.dumps(_call("submit_task", {"prompt": "x", "context": {"a": [{}] * 1_200_000}}))
    large = asyncio.create_task(_post(me, body))
    longest = 0.0
    while not large.done():
        started_at = asyncio.get_running_loop().time()
        assert (await me.http.get("/healthz")).status_code == 200
        longest = max(longest, asyncio.get_running_loop().time() - started_at)
    assert (await large).status_code == 200
    assert longest < 30
