"""Approve and reject over HTTP, and what the answers say of policies."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.values import Json, JsonObject
from rayloom.serve.settings import ServeSettings
from tests.integration.serve.fakes import ANY, tool
from tests.integration.serve.world import Person, World, one


def _noop(name: str, *depends_on: str, **fields: Json) -> JsonObject:
    return {"id": name, "type": "TOOL", "tool": "core.noop", "depends_on": list(depends_on), **fields}


def _plan(*subtasks: JsonObject) -> JsonObject:
    return {"subtasks": list(subtasks)}


async def _post(who: Person, task_id: str, verb: str, body: Any = None, **params: str) -> httpx2.Response:
    return await who.http.post(f"/api/v1/tasks/{task_id}/{verb}", json=body, params=params)


def _problem(answer: httpx2.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


async def _events(me: Person, task_id: str) -> list[tuple[str, Any]]:
    """Name and data of every event of a task that has ended."""
    answer = await me.http.get(f"/api/v1/tasks/{task_id}/events")
    blocks = [block.splitlines() for block in answer.text.split("\n\n") if "data:" in block]
    found = []
    for lines in blocks:
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        found.append((fields["event"], orjson.loads(fields["data"])))
    return found


async def test_a_subtask_waits_for_its_approval_and_the_record_says_whose_it_was(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": _plan(_noop("a"), _noop("b", "a", require_approval=True), _noop("c", "b"))})
    await world.run(task_id)
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "PROCESSING"
    assert (shown["progress"]["awaiting_approval"], shown["progress"]["ready"]) == (1, 1)
    assert shown["subtasks"][1]["status"] == "AWAITING_APPROVAL"
    answer = await _post(me, task_id, "approve", {"subtask": "b"})
    assert answer.status_code == 200
    assert answer.json() == {
        "task_id": task_id, "status": "PROCESSING", "decision": "approved", "plan": False, "subtasks": ["b"],
    }  # fmt: skip
    assert "does not wait" in _problem(await _post(me, task_id, "approve", {"subtask": "b"}), 409)["detail"]
    await world.run(task_id)
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "COMPLETED"
    told = [data for name, data in await _events(me, task_id) if name == "approval"]
    assert [(data["subtask"], data["from"], data["to"]) for data in told] == [
        ("b", "READY", "AWAITING_APPROVAL"), ("b", "AWAITING_APPROVAL", "QUEUED"),
    ]  # fmt: skip
    assert told[1]["reason"].startswith("approved by u-")
    lines = [line["message"] for line in (await me.get(f"/tasks/{task_id}/logs"))["items"]]
    assert any(line.startswith("approval of subtask b: approved by u-") for line in lines)


@pytest.mark.parametrize("body", [b"", b" \n", b"{}"])
async def test_a_plan_is_approved_as_a_whole_without_a_body(world: World, body: bytes) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one(), "require_approval": True})
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["progress"]["pending"]) == ("READY", 1)
    assert not await world.claimed(task_id)
    assert "the plan waits" in _problem(await _post(me, task_id, "approve", {"subtask": "only"}), 409)["detail"]
    answer = await me.http.post(f"/api/v1/tasks/{task_id}/approve", content=body)
    assert (answer.status_code, answer.json()["plan"], answer.json()["status"]) == (200, True, "PROCESSING")
    await world.run(task_id)
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "COMPLETED"


async def test_a_rejected_plan_is_cancelled_with_the_reason(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one(), "require_approval": True})
    answer = await _post(me, task_id, "reject", {"reason": "too dear"})
    assert answer.json()["status"] == "CANCELLED"
    shown = await me.get(f"/tasks/{task_id}")
    assert shown["status"] == "CANCELLED"
    assert (shown["error"]["code"], shown["error"]["class"]) == ("REJECTED", "refused")
    assert shown["error"]["message"].endswith(": too dear")
    for verb in ("approve", "reject"):
        assert (
            "CANCELLED"
            in _problem(await _post(me, task_id, verb, {"reason": "x"} if verb == "reject" else {}), 409)["detail"]
        )


async def test_a_rejected_subtask_is_blocked_and_others_go_by_its_policy(world: World) -> None:
    me = await world.user()
    plan = _plan(
        _noop("a", require_approval=True, on_failure="continue"), _noop("b", "a"),
        _noop("c", require_approval=True), _noop("d", "c"),
    )  # fmt: skip
    task_id = await me.submit({"plan": plan})
    answer = await _post(me, task_id, "reject", {"reason": "no"})
    assert answer.json()["subtasks"] == ["a", "c"]
    await world.run(task_id)
    shown = await me.get(f"/tasks/{task_id}")
    assert [row["status"] for row in shown["subtasks"]] == ["BLOCKED", "COMPLETED", "BLOCKED", "SKIPPED"]
    assert shown["subtasks"][2]["error"]["code"] == "REJECTED"
    assert (shown["status"], shown["missing"]) == ("FAILED", ["a"])


async def test_of_many_who_approve_at_once_one_does(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": _plan(*(_noop(key, require_approval=True) for key in "ab"))})
    answers = await asyncio.gather(*(_post(me, task_id, "approve", {"subtask": key}) for key in "ab" * 10))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [409] * 18
    assert len(await world.claimed(task_id)) == 2


@pytest.mark.parametrize(
    ("verb", "body", "pointer"),
    [
        ("approve", {"subtask": "nobody"}, "/subtask"),
        ("approve", {"subtasks": ["only"]}, "/subtasks"),
        ("approve", {"subtask": ""}, "/subtask"),
        ("reject", {"subtask": "only"}, "/reason"),
        ("reject", {"reason": "  "}, "/reason"),
        ("reject", {"reason": ""}, "/reason"),
        ("reject", {"reason": "x" * 1001}, "/reason"),
        ("reject", {"reason": "x", "subtask": "nobody"}, "/subtask"),
    ],
)
async def test_a_body_that_names_nothing_is_refused(world: World, verb: str, body: JsonObject, pointer: str) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": one(require_approval=True)})
    problem = _problem(await _post(me, task_id, verb, body), 422)
    assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
    assert (await me.get(f"/tasks/{task_id}"))["progress"]["awaiting_approval"] == 1


async def test_only_its_owner_and_an_admin_decide(world: World) -> None:
    me, other, admin = await world.user(), await world.user(), await world.user("admin")
    task_id = await me.submit({"plan": one(require_approval=True)})
    _problem(await _post(other, task_id, "approve", {}), 404)
    _problem(await _post(other, task_id, "reject", {"reason": "x"}), 404)
    _problem(await _post(me, str(uuid7()), "approve", {}), 404)
    _problem(await _post(me, "x", "reject", {"reason": "x"}), 404)
    assert (await _post(admin, task_id, "approve", {}, user_id=str(me.id))).status_code == 200


async def test_what_is_missing_and_what_ran_the_fallback_is_shown(world: World) -> None:
    me = await world.user()
    plan = _plan(
        _noop("gone", on_failure="default", default=[1]),
        _noop("turns", on_failure="fallback", fallback={"tool": "core.echo", "input": {"value": "plan B"}}),
        _noop("end", "gone", "turns"),
    )
    task_id = await me.submit({"plan": plan})
    for item in await world.claimed(task_id):
        await world.fail(item)
    (again,) = await world.claimed(task_id)
    assert (again.tool, again.input) == ("core.echo", '{"value": "plan B"}')
    subtask = await me.get(f"/tasks/{task_id}/subtasks/turns")
    assert [(row["attempt"], row["tool"], row["fallback"]) for row in subtask["attempts"]] == [
        (1, "core.noop", False), (2, "core.echo", True),
    ]  # fmt: skip
    assert subtask["fallback"] == {"tool": "core.echo", "input": {"value": "plan B"}}
    assert (subtask["tool"], subtask["on_failure"]) == ("core.noop", "fallback")
    await world.end([again], lambda item: item.key)
    await world.run(task_id)
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["missing"], shown["result"]) == ("COMPLETED", ["gone"], "end")
    gone = await me.get(f"/tasks/{task_id}/subtasks/gone")
    assert (gone["status"], gone["default"], gone["output"]) == ("BLOCKED", [1], None)
    trace = await me.get(f"/tasks/{task_id}/trace")
    ran = {
        (span["subtask"], span["attempt"]): span["attributes"] for span in trace["spans"] if span["kind"] == "attempt"
    }
    assert (ran["turns", 1]["tool"], "fallback" in ran["turns", 1]) == ("core.noop", False)
    assert (ran["turns", 2]["tool"], ran["turns", 2]["fallback"]) == ("core.echo", True)
    lines = await me.get(f"/tasks/{task_id}/logs", subtask="end")
    assert "goes on without gone (its default stands in)" in [line["message"] for line in lines["items"]]


async def test_a_policy_that_lacks_its_part_is_refused_with_its_place(world: World) -> None:
    me = await world.user()
    plan = _plan(
        _noop("a", on_failure="default"),
        _noop("b", on_failure="fallback", fallback={"tool": "core.echo", "input": {"valeu": 1}}),
    )
    problem = _problem(await me.http.post("/api/v1/tasks", json={"plan": plan}), 422)
    assert [fault["pointer"] for fault in problem["errors"]] == [
        "/plan/subtasks/0/default", "/plan/subtasks/1/fallback/input/value", "/plan/subtasks/1/fallback/input/valeu",
    ]  # fmt: skip


class TestLevels:
    """Where tools of the permission level ``execute`` want approval."""

    @pytest.fixture
    def settings(self) -> ServeSettings:
        return ServeSettings(max_body_bytes=2_000_000, request_timeout_s=60, approval_levels=("execute",))

    async def test_a_tool_of_that_level_waits_for_approval(self, world: World) -> None:
        me = await world.user()
        strong = tool("strong.tool", ANY, permission_level="execute")
        world.fakes.registry.change({**world.fakes.registry.tools, "strong.tool": strong})
        await world.deps.offered.refresh()
        task_id = await me.submit({"plan": _plan(_noop("weak"), _noop("strong", tool="strong.tool"))})
        shown = await me.get(f"/tasks/{task_id}")
        assert [row["status"] for row in shown["subtasks"]] == ["QUEUED", "AWAITING_APPROVAL"]
        # A direct call would be a way around it.
        refused = await me.http.post("/api/v1/tools/strong.tool/invoke", json={"input": {}})
        assert "wants approval" in _problem(refused, 409)["detail"]
        await _post(me, task_id, "approve")
        await world.run(task_id)
        assert (await me.get(f"/tasks/{task_id}"))["status"] == "COMPLETED"
