"""rayloom as an MCP server: what an assistant does with it, through the SDK's own client."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx2
import orjson
import pytest
from mcp import MCPError
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Transient
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.assistants import REVISIONS, ask, assistant, at, refused, text_of
from tests.integration.serve.world import DIAMOND, Person, World, one, serving, until
from tests.integration.waiting import GENEROUS_S

NAMES = [
    "submit_task", "get_task", "wait_for_task", "list_subtasks", "get_result", "get_logs", "cancel_task", "retry_task",
    "list_tasks", "list_tools",
]  # fmt: skip
OF_ONE_TASK = [
    "get_task",
    "wait_for_task",
    "list_subtasks",
    "get_result",
    "get_logs",
    "cancel_task",
    "retry_task",
]


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_task_from_its_submission_to_its_result(world: World, revision: str) -> None:
    me = await world.user()
    heard: list[tuple[float, float | None, str | None]] = []
    began = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))
        began.set()

    async with assistant(world, me, revision) as client:
        submitted = await ask(client, "submit_task", plan=DIAMOND, title="a diamond", priority=7)
        assert submitted["status"] == "PROCESSING"
        assert submitted["replayed"] is False
        task_id = submitted["task_id"]
        looked = await ask(client, "get_task", task_id=task_id)
        assert (looked["title"], looked["priority"]) == ("a diamond", 7)
        assert [subtask["id"] for subtask in looked["subtasks"]] == ["a", "b", "c", "d"]
        waiting = asyncio.create_task(ask(client, "wait_for_task", hear=hear, task_id=task_id, timeout_s=GENEROUS_S))
        await asyncio.wait_for(began.wait(), GENEROUS_S)
        await world.run(task_id)
        waited = await waiting
        assert waited["ended"] is True
        assert waited["task"]["status"] == "COMPLETED"
        assert waited["task"]["progress"]["percent"] == 100.0
        told = [progress for progress, _, _ in heard]
        assert told == sorted(set(told))
        assert heard[0][2] == "PROCESSING: 0 of 4 subtasks"
        assert await ask(client, "get_result", task_id=task_id) == {
            "task_id": task_id,
            "status": "COMPLETED",
            "result": "d",
            "missing": [],
            "error": None,
        }
        assert (await ask(client, "get_result", task_id=task_id, subtask="a"))["result"] == "a"
        page = await ask(client, "list_subtasks", task_id=task_id, limit=3)
        rest = await ask(client, "list_subtasks", task_id=task_id, limit=3, cursor=page["next_cursor"])
        assert [subtask["id"] for subtask in page["items"] + rest["items"]] == ["a", "b", "c", "d"]
        assert rest["next_cursor"] is None
        log = await ask(client, "get_logs", task_id=task_id, subtask="a", limit=2)
        assert {line["subtask"] for line in log["items"]} == {"a"}
        assert log["next_cursor"]
        (listed,) = (await ask(client, "list_tasks", status=["completed"]))["items"]
        assert listed["task_id"] == task_id
        assert (await ask(client, "list_tasks", status=["FAILED"]))["items"] == []


@pytest.mark.parametrize("revision", REVISIONS)
async def test_tools_tell_what_they_take_and_give_and_whether_they_change_something(
    world: World, revision: str
) -> None:
    me = await world.user()
    async with assistant(world, me, revision) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == NAMES
    for tool in tools.values():
        assert tool.description
        assert tool.title
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
    hints = {name: tool.annotations for name, tool in tools.items() if tool.annotations is not None}
    changing = {name for name in NAMES if not hints[name].read_only_hint}
    assert changing == {"submit_task", "cancel_task", "retry_task"}
    assert {name for name in NAMES if hints[name].destructive_hint} == {"cancel_task"}
    assert {name for name in changing if not hints[name].idempotent_hint} == {"submit_task", "retry_task"}
    assert {"prompt", "plan", "context", "budget", "labels", "wait_s"} <= set(
        tools["submit_task"].input_schema["properties"]
    )


async def test_text_and_structure_say_the_same(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    async with assistant(world, me) as client:
        result = await client.call_tool("get_task", {"task_id": task_id})
    assert orjson.loads(text_of(result)) == result.structured_content


async def test_a_submission_may_be_waited_for(world: World) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        waiting = asyncio.create_task(ask(client, "submit_task", plan=one(), wait_s=GENEROUS_S))
        await world.run(await me.only_task())
        submitted = await waiting
        assert submitted["status"] == submitted["task"]["status"] == "COMPLETED"
        # Nobody runs this one.
        submitted = await ask(client, "submit_task", prompt="1. @core.noop {}", wait_s=0.1)
        assert submitted["status"] == submitted["task"]["status"] == "PENDING"


async def test_a_wait_ends_in_time_and_the_task_goes_on(world: World) -> None:
    me = await world.user()
    task_id = await me.submit()
    async with assistant(world, me) as client:
        for timeout_s in (0, 0.2):
            waited = await ask(client, "wait_for_task", task_id=task_id, timeout_s=timeout_s)
            assert waited["ended"] is False
            assert timeout_s <= waited["waited_s"] < GENEROUS_S
        assert (await refused(client, "wait_for_task", task_id=task_id, timeout_s=301))["status"] == 422
        await world.run(task_id)
        assert (await ask(client, "wait_for_task", task_id=task_id))["ended"] is True


async def test_progress_is_told_although_no_other_news_follow(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": DIAMOND})
    heard: asyncio.Queue[float] = asyncio.Queue()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        await heard.put(progress)

    async with assistant(world, me) as client, asyncio.timeout(GENEROUS_S):
        waiting = asyncio.create_task(ask(client, "wait_for_task", hear=hear, task_id=task_id, timeout_s=GENEROUS_S))
        assert await heard.get() == 0
        await world.end(await world.claimed(task_id), lambda item: item.key)
        assert await heard.get() == 1
        await world.run(task_id)
        assert (await waiting)["ended"] is True


@pytest.mark.parametrize("revision", REVISIONS)
async def test_an_assistant_that_goes_away_leaves_nothing_behind(world: World, revision: str) -> None:
    me = await world.user()
    task_id = await me.submit()
    heard = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.set()

    async def look(line: str) -> bool:
        return line in (await me.http.get("/metrics")).text.splitlines()

    async with assistant(world, me, revision) as client:
        waiting = asyncio.create_task(ask(client, "wait_for_task", hear=hear, task_id=task_id))
        await asyncio.wait_for(heard.wait(), GENEROUS_S)
        assert await look("rayloom_http_streams_open 1.0")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert await until(lambda: look("rayloom_http_streams_open 0.0"))
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "PROCESSING"


async def test_what_is_somebody_elses_is_not_found(world: World) -> None:
    me, other, admin = await world.user(), await world.user(), await world.user("admin")
    task_id = await me.submit()
    for person in (other, admin):
        async with assistant(world, person) as client:
            for name in OF_ONE_TASK:
                for unknown in (task_id, str(uuid7()), "no id", ""):
                    assert (await refused(client, name, task_id=unknown))["status"] == 404, (name, unknown)
            assert (await ask(client, "list_tasks"))["items"] == []
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "PROCESSING"


async def test_a_submission_is_judged_as_the_route_judges_it(world: World) -> None:
    me = await world.user()
    bodies: list[dict[str, Any]] = [
        {},
        {"prompt": " "},
        {"prompt": "x", "priority": 11},
        {"prompt": "x", "promt": 1},
        {"prompt": "x", "callback_url": "http://127.0.0.1:1/"},
        {"plan": {"subtasks": []}},
        {"plan": {"subtasks": [{"id": "a", "type": "TOOL", "tool": "core.nop"}]}},
        {"plan": one(input={"x": 1}), "tools": {"deny": ["core.*"]}},
        {"plan": one(depends_on=["only"]), "budget": {"tokens": 1}},
    ]
    async with assistant(world, me) as client:
        for body in bodies:
            answer = await me.http.post("/api/v1/tasks", json=body)
            problem = await refused(client, "submit_task", **body)
            assert problem["status"] == answer.status_code == 422
            assert problem["errors"] == answer.json()["errors"]
    assert (await me.get("/tasks"))["items"] == []


async def test_the_same_key_gives_the_same_task(world: World) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        first = await ask(client, "submit_task", plan=one(), idempotency_key="k")
        again = await ask(client, "submit_task", plan=one(), idempotency_key="k")
        assert again == first | {"replayed": True}
        problem = await refused(client, "submit_task", plan=DIAMOND, idempotency_key="k")
        assert (problem["code"], problem["errors"][0]["pointer"]) == ("IDEMPOTENCY_MISMATCH", "/idempotency_key")
        problem = await refused(client, "submit_task", plan=one(), idempotency_key="ä")
        assert problem["errors"][0]["pointer"] == "/idempotency_key"
    # It is the key that the route knows, too.
    answer = await me.http.post("/api/v1/tasks", json={"plan": one()}, headers={"Idempotency-Key": "k"})
    assert answer.json()["task_id"] == first["task_id"]


async def test_cancelling_and_retrying(world: World) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        task_id = (await ask(client, "submit_task", plan=DIAMOND))["task_id"]
        (item,) = await world.claimed(task_id)
        await world.fail(item)
        failed = await ask(client, "wait_for_task", task_id=task_id)
        assert failed["task"]["status"] == "FAILED"
        assert failed["task"]["subtasks"][0]["error"]["code"] == "BOOM"
        errors = await ask(client, "get_logs", task_id=task_id, level=["error"])
        assert errors["items"]
        assert {line["level"] for line in errors["items"]} == {"ERROR"}
        assert (await refused(client, "retry_task", task_id=task_id, subtasks=["x"]))["status"] == 422
        assert (await ask(client, "retry_task", task_id=task_id))["retried"] == ["a"]
        cancelled = await ask(client, "cancel_task", task_id=task_id)
        assert (cancelled["status"], cancelled["withdrawn"]["queued"]) == ("CANCELLED", 1)
        assert (await ask(client, "cancel_task", task_id=task_id))["status"] == "CANCELLED"
        assert (await refused(client, "retry_task", task_id=task_id))["status"] == 409


async def test_tools_are_listed_without_schemas_and_one_with_its_own(world: World) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        page = await ask(client, "list_tools", limit=2)
        rest = await ask(client, "list_tools", cursor=page["next_cursor"])
        assert [tool["name"] for tool in page["items"] + rest["items"]] == ["core.echo", "core.noop", "core.sleep"]
        assert "input_schema" not in page["items"][0]
        (echo,) = (await ask(client, "list_tools", name="core.echo"))["items"]
        assert echo["input_schema"]["required"] == ["value"]
        assert (await refused(client, "list_tools", name="secret.tool"))["status"] == 404


@pytest.mark.parametrize(
    ("tool", "arguments", "pointer"),
    [
        ("list_tasks", {"status": ["DONE"]}, "/status"),
        ("list_tasks", {"cursor": "nonsense"}, "/cursor"),
        ("list_tasks", {"limit": 0}, "/limit"),
        ("list_tasks", {"limit": "5"}, "/limit"),
        ("list_tools", {"cursor": "nonsense"}, "/cursor"),
        ("get_task", {}, "/task_id"),
        ("get_task", {"task_id": 5}, "/task_id"),
        ("get_task", {"task_id": "x", "taskid": "x"}, "/taskid"),
        ("submit_task", {"prompt": "x", "wait_s": -1}, "/wait_s"),
        ("submit_task", {"prompt": "x", "wait_s": "1"}, "/wait_s"),
        ("submit_task", {"prompt": "x", "idempotency_key": 1}, "/idempotency_key"),
    ],
)
async def test_what_is_wrong_with_arguments_is_said_with_its_place(
    world: World, tool: str, arguments: dict[str, Any], pointer: str
) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        problem = await refused(client, tool, **arguments)
    assert problem["status"] == 422
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_an_unknown_tool_is_an_error_of_the_protocol_that_names_a_near_one(world: World) -> None:
    me = await world.user()
    async with assistant(world, me) as client:
        with pytest.raises(MCPError, match=r"Unknown tool: submit_tsk.*submit_task"):
            await client.call_tool("submit_tsk", {})


async def test_what_is_away_is_told_with_when_to_try_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise Transient("AWAY", "the database is away", retry_after_s=6.5)

    me = await world.user()
    monkeypatch.setattr("rayloom.db.reads.list_tasks", away)
    async with assistant(world, me) as client:
        result = await client.call_tool("list_tasks", {})
    assert text_of(result) == "Service Unavailable: the database is away\nTry again in 7 s."
    assert result.meta is not None
    assert result.meta["rayloom/problem"] == {
        "status": 503, "code": "AWAY", "detail": "the database is away", "retry_after_s": 7
    }  # fmt: skip


async def test_an_unforeseen_error_tells_nothing_of_the_inside(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError("the inside")

    me = await world.user()
    monkeypatch.setattr("rayloom.db.reads.list_tasks", broken)
    async with assistant(world, me) as client:
        with caplog.at_level(logging.ERROR):
            result = await client.call_tool("list_tasks", {})
    assert result.is_error
    assert "inside" not in text_of(result)
    assert "mcp.failed" in caplog.text


@pytest.mark.parametrize("revision", REVISIONS)
async def test_whatever_replica_is_asked_can_answer(
    database: DatabaseSettings, redis: RedisSettings, settings: ServeSettings, revision: str
) -> None:
    async with serving(database, redis, settings) as one_, serving(database, redis, settings) as other:
        me = await one_.user()
        ports = {httpx2.URL(world.url).port for world in (one_, other)}

        async def turn_about(request: httpx2.Request) -> None:
            ports_in_turn.append(ports_in_turn.pop(0))
            request.url = request.url.copy_with(port=ports_in_turn[0])

        ports_in_turn = sorted(port for port in ports if port is not None)
        async with at(one_.url, me.key, revision, on_request=turn_about) as client:
            for _ in range(3):
                task_id = (await ask(client, "submit_task", plan=one()))["task_id"]
                assert (await ask(client, "get_task", task_id=task_id))["status"] == "PROCESSING"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_many_calls_leave_nothing_behind(world: World, revision: str) -> None:
    me = await world.user()
    task_id = await me.submit()
    async with assistant(world, me, revision) as client:

        async def use(_: int) -> None:
            await asyncio.gather(
                *(ask(client, "get_task", task_id=task_id) for _ in range(15)),
                *(ask(client, "wait_for_task", task_id=task_id, timeout_s=0.01) for _ in range(3)),
                *(refused(client, "get_task", task_id=str(uuid7())) for _ in range(2)),
            )

        await use(0)
        before = await _held(me)
        for turn in range(8):
            await use(turn)

        async def is_settled() -> bool:
            return await _held(me) <= before

        assert await until(is_settled)


async def _held(person: Person) -> int:
    """How many tasks of asyncio there are when nothing is under way, as soon as that is so."""

    async def look() -> bool:
        lines = (await person.http.get("/metrics")).text.splitlines()
        return {"rayloom_http_requests_open 0.0", "rayloom_http_streams_open 0.0"} <= set(lines)

    await until(look)
    return len(asyncio.all_tasks())


class TestAFullHouse:
    """A replica that carries one stream at a time, and in which nothing may take long."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(admission_streams=1, request_timeout_s=4)

    async def test_more_waits_are_told_to_come_back(self, world: World) -> None:
        me = await world.user()
        task_id = await me.submit()
        async with me.http.stream("GET", f"/api/v1/tasks/{task_id}/events"), assistant(world, me) as client:
            assert (await refused(client, "wait_for_task", task_id=task_id))["code"] == "OVERLOADED"
            # Nor is a task taken that could not be waited for.
            assert (await refused(client, "submit_task", plan=one(), wait_s=1))["code"] == "OVERLOADED"
            assert len((await ask(client, "list_tasks"))["items"]) == 1

    @pytest.mark.parametrize("revision", REVISIONS)
    async def test_what_takes_too_long_is_a_result_that_says_so(
        self, world: World, revision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def endless(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        me = await world.user()
        monkeypatch.setattr("rayloom.db.reads.list_tasks", endless)
        async with assistant(world, me, revision) as client:
            assert (await refused(client, "list_tasks"))["code"] == "TIMED_OUT"

    async def test_a_wait_outlives_the_time_limit_of_requests(self, world: World) -> None:
        me: Person = await world.user()
        task_id = await me.submit()
        async with assistant(world, me) as client:
            assert (await ask(client, "wait_for_task", task_id=task_id, timeout_s=4.3))["waited_s"] >= 4.3
