"""The dead-letter queue over REST: listed, grouped, shown, retried and discarded, one by one and by filter."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome
from rayloom.dag.values import JsonObject
from rayloom.db import events
from rayloom.db.attempts import Claimed, Ending, complete
from tests.integration.serve.world import Person, World

CAUSES = ("no answer from 10.0.0.{}:5432", "row {} has no column 'x{}'", "it went wrong {} times")
"""Three causes, worded otherwise in every case."""


def wide(count: int, **fields: Any) -> JsonObject:
    """A plan of independent subtasks."""
    return {
        "subtasks": [
            {"id": f"s{n}", "type": "TOOL", "tool": "core.echo", "input": {"value": n}, **fields} for n in range(count)
        ]
    }


async def block(world: World, items: list[Claimed], *messages: str) -> None:
    """Let attempts fail for good, with these messages in turn."""
    endings = []
    for n, item in enumerate(items):
        message = messages[n % len(messages)].format(n, n)
        error = ErrorInfo(code="BOOM", error_class="user", message=message, retryable=False)
        outcome = Outcome(verdict="failed", error=error, started_at=1.8e9, finished_at=1.8e9, worker_id="w")
        endings.append(Ending(sub_task_id=item.sub_task_id, attempt=item.attempt, outcome=outcome))
    await complete(world.engine, endings)


async def blocked(world: World, me: Person, count: int = 1, **fields: Any) -> str:
    """A task of which everything is BLOCKED, by three causes."""
    task_id = await me.submit({"plan": wide(count), **fields})
    await block(world, await world.claimed(task_id), *CAUSES)
    return task_id


async def only(me: Person, **params: Any) -> Any:
    (letter,) = (await me.get("/dead-letters", **params))["items"]
    return letter


async def test_a_thousand_letters_of_three_causes_are_three_groups_and_are_retried_by_cause(world: World) -> None:
    me = await world.user()
    tasks = [await blocked(world, me, 250) for _ in range(4)]
    groups = (await me.get("/dead-letters", group="fingerprint"))["items"]
    assert sum(group["count"] for group in groups) == 1000
    assert len(groups) == 3
    assert {group["sample"]["fingerprint"] for group in groups} == {group["fingerprint"] for group in groups}
    assert {group["sample"]["error"]["message"][:6] for group in groups} == {"no ans", "row 24", "it wen"}
    left = 1000
    for group in groups:
        body = {"filter": {"fingerprint": group["fingerprint"]}, "dry_run": True}
        tried = await me.http.post("/api/v1/dead-letters/retry", json=body)
        assert (tried.status_code, tried.json()) == (200, {"matched": group["count"], "accepted": 0})
        answer = await me.http.post("/api/v1/dead-letters/retry", json=body | {"dry_run": False})
        assert (answer.status_code, answer.json()) == (202, {"matched": group["count"], "accepted": group["count"]})
        left -= group["count"]
        listed = await me.get("/dead-letters", limit=500)
        assert len(listed["items"]) == min(left, 500)
    await world.end(await world.claimed(None), lambda item: item.key)
    for task_id in tasks:
        shown = await me.get(f"/tasks/{task_id}")
        assert (shown["status"], shown["error"]) == ("COMPLETED", None)


async def test_a_letter_says_all_that_is_needed(world: World) -> None:
    me = await world.user()
    task_id = await blocked(world, me)
    letter = await only(me)
    subtask = await me.get(f"/tasks/{task_id}/subtasks/s0")
    assert letter == {
        "id": subtask["sub_task_id"], "task_id": task_id, "subtask": "s0", "tool": "core.echo",
        "error": subtask["error"], "fingerprint": letter["fingerprint"], "input": {"value": 0}, "attempts": 1,
        "status": "open", "at": letter["at"],
    }  # fmt: skip
    shown = await me.get(f"/dead-letters/{letter['id']}")
    assert shown["attempts"] == subtask["attempts"]
    assert shown["input"] == {"value": 0}


async def test_nobody_sees_or_touches_the_letters_of_another(world: World) -> None:
    me, stranger, admin = await world.user(), await world.user(), await world.user("admin")
    await blocked(world, me)
    letter = await only(me)
    assert (await stranger.get("/dead-letters"))["items"] == []
    assert (await stranger.get("/dead-letters", group="fingerprint"))["items"] == []
    for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/discard")):
        answer = await stranger.http.request(method, f"/api/v1/dead-letters/{letter['id']}{path}")
        assert answer.status_code == 404
    answer = await stranger.http.post("/api/v1/dead-letters/discard", json={"filter": {}})
    assert answer.json() == {"matched": 0, "accepted": 0}
    assert (await stranger.http.get("/api/v1/dead-letters", params={"user_id": str(me.id)})).status_code == 403
    assert (await only(admin, user_id=str(me.id)))["id"] == letter["id"]
    params = {"user_id": str(me.id)}
    answer = await admin.http.post(f"/api/v1/dead-letters/{letter['id']}/discard", params=params)
    assert (answer.status_code, answer.json()["status"]) == (200, "discarded")


async def test_a_list_is_filtered_and_paged(world: World) -> None:
    me = await world.user()
    first = await blocked(world, me, 5, labels={"team": "x"})
    await blocked(world, me, 3)
    pages, cursor = [], None
    while True:
        page = await me.get("/dead-letters", limit=3, **({"cursor": cursor} if cursor else {}))
        pages.append(len(page["items"]))
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert pages == [3, 3, 2]
    groups = await me.get("/dead-letters", group="fingerprint", limit=2)
    rest = await me.get("/dead-letters", group="fingerprint", limit=2, cursor=groups["next_cursor"])
    assert [group["count"] for group in groups["items"] + rest["items"]] == [3, 3, 2]
    assert rest["next_cursor"] is None
    for params, count in (
        ({"task_id": first}, 5), ({"label": "team=x"}, 5), ({"label": "team=y"}, 0), ({"tool": "core.echo"}, 8),
        ({"tool": "core.noop"}, 0), ({"code": "BOOM"}, 8), ({"status": "discarded,retried"}, 0),
        ({"created_after": "2020-01-01T00:00:00Z"}, 8), ({"created_before": "2020-01-01T00:00:00Z"}, 0),
    ):  # fmt: skip
        assert len((await me.get("/dead-letters", **params))["items"]) == count, params


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"status": "lost"}, "/query/status"),
        ({"task_id": "x"}, "/query/task_id"),
        ({"group": "colour"}, "/query/group"),
        ({"created_after": "soon"}, "/query/created_after"),
        ({"label": "x"}, "/query/label"),
        ({"cursor": "x"}, "/query/cursor"),
        ({"cursor": "x", "group": "fingerprint"}, "/query/cursor"),
        ({"limit": 501}, "/query/limit"),
    ],
)
async def test_a_wrong_query_is_told_with_its_place(world: World, params: dict[str, str], pointer: str) -> None:
    me = await world.user()
    answer = await me.http.get("/api/v1/dead-letters", params=params)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/filter"),
        ({"filter": {"status": "retried"}}, "/filter/status"),
        ({"filter": {"colour": "x"}}, "/filter/colour"),
        ({"filter": {"task_id": "x"}}, "/filter/task_id"),
        ({"filter": {"created_before": "soon"}}, "/filter/created_before"),
        ({"filter": {}, "dry_run": 1}, "/dry_run"),
    ],
)
async def test_a_wrong_filter_is_told_with_its_place(world: World, body: JsonObject, pointer: str) -> None:
    me = await world.user()
    for verb in ("retry", "discard"):
        answer = await me.http.post(f"/api/v1/dead-letters/{verb}", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_of_many_retries_of_one_letter_one_is_taken(world: World) -> None:
    me = await world.user()
    task_id = await blocked(world, me)
    letter = await only(me)

    async def retry() -> int:
        return (await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry")).status_code

    assert sorted(await asyncio.gather(*(retry() for _ in range(20)))) == [202] + [409] * 19
    assert len(await world.claimed(task_id)) == 1
    subtask = await me.get(f"/tasks/{task_id}/subtasks/s0")
    assert (subtask["status"], len(subtask["attempts"])) == ("RUNNING", 2)


async def test_bulk_requests_at_once_take_each_letter_once(world: World) -> None:
    me = await world.user()
    for _ in range(10):
        await blocked(world, me, 30)

    async def bulk(verb: str) -> int:
        answer = await me.http.post(f"/api/v1/dead-letters/{verb}", json={"filter": {}})
        return int(answer.json()["accepted"])

    done = await asyncio.gather(bulk("retry"), bulk("discard"), bulk("retry"), bulk("discard"))
    assert sum(done) == 300
    discarded = await me.get("/dead-letters", status="discarded", limit=500)
    assert len(discarded["items"]) == done[1] + done[3]
    assert len(await world.claimed(None)) >= done[0] + done[2]
    assert (await me.get("/dead-letters"))["items"] == []


async def test_the_queue_is_told_of_a_retry_and_a_follower_of_the_task(world: World) -> None:
    me = await world.user()
    task_id = await blocked(world, me)
    letter = await only(me)
    async with world.signals.listen("rayloom:wake") as wake, world.signals.listen(f"rayloom:task:{task_id}") as news:
        await wake.wait(1)
        await news.wait(1)
        answer = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry", json={})
        assert answer.json() == {"id": letter["id"], "task_id": task_id, "subtask": "s0", "status": "retried"}
        assert await wake.wait(5) is not None
        assert await news.wait(5) is not None
    page = await events.after(world.engine, UUID(task_id), 0, limit=1000)
    assert [(event.source, event.target, event.reason) for event in page.events][-2:] == [
        ("FAILED", "PROCESSING", "its dead letter is retried"), ("BLOCKED", "QUEUED", "its dead letter is retried")
    ]  # fmt: skip


async def test_what_was_discarded_stays_blocked(world: World) -> None:
    me = await world.user()
    task_id = await blocked(world, me)
    letter = await only(me)
    for _ in range(2):
        answer = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/discard")
        assert (answer.status_code, answer.json()["status"]) == (200, "discarded")
    refused = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry")
    assert (refused.status_code, "discarded" in refused.json()["detail"]) == (409, True)
    bulk = await me.http.post("/api/v1/dead-letters/retry", json={"filter": {}})
    assert bulk.json() == {"matched": 0, "accepted": 0}
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/retry")).status_code == 409
    assert (await me.get(f"/tasks/{task_id}/subtasks/s0"))["status"] == "BLOCKED"
    assert (await only(me, status="discarded"))["id"] == letter["id"]


async def test_what_was_retried_can_not_be_discarded_nor_retried(world: World) -> None:
    me = await world.user()
    await blocked(world, me)
    letter = await only(me)
    assert (await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry")).status_code == 202
    for verb in ("retry", "discard"):
        assert (await me.http.post(f"/api/v1/dead-letters/{letter['id']}/{verb}")).status_code == 409


async def test_letters_of_a_task_that_is_over_are_not_accepted(world: World) -> None:
    me = await world.user()
    task_id = await me.submit({"plan": wide(2)})
    (first, _) = await world.claimed(task_id)
    await block(world, [first], "it went wrong")
    assert (await me.http.post(f"/api/v1/tasks/{task_id}/cancel")).status_code == 202
    letter = await only(me)
    refused = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry")
    assert (refused.status_code, "CANCELLED" in refused.json()["detail"]) == (409, True)
    bulk = await me.http.post("/api/v1/dead-letters/retry", json={"filter": {"task_id": task_id}})
    assert bulk.json() == {"matched": 1, "accepted": 0}


async def test_unknown_letters_are_404(world: World) -> None:
    me = await world.user()
    for id_ in (str(uuid7()), "x"):
        for method, path in (("GET", ""), ("POST", "/retry"), ("POST", "/discard")):
            assert (await me.http.request(method, f"/api/v1/dead-letters/{id_}{path}")).status_code == 404


CHAIN: JsonObject = {
    "subtasks": [
        {"id": "a", "type": "TOOL", "tool": "core.echo", "input": {"value": 1}},
        {"id": "x", "type": "TOOL", "tool": "core.echo", "input": {"value": 2}},
        {"id": "bad", "type": "TOOL", "tool": "core.echo", "input": {"value": {"$ref": "a.output.y"}}},
        {"id": "after", "type": "TOOL", "tool": "core.echo", "input": {"value": "${bad.output}"}},
    ]
}


async def stuck_chain(world: World, me: Person) -> str:
    task_id = await me.submit({"plan": CHAIN})
    await world.end(await world.claimed(task_id), lambda item: {"y": item.key})
    await block(world, await world.claimed(task_id), "it went wrong")
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "FAILED"
    return task_id


async def test_a_retry_with_another_input_completes_the_task_and_what_was_skipped(world: World) -> None:
    me = await world.user()
    task_id = await stuck_chain(world, me)
    letter = await only(me)
    body = {"input": {"value": ["${x.output.y}", {"$ref": "a.output"}]}}
    answer = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry", json=body)
    assert answer.status_code == 202, answer.text
    (again,) = await world.claimed(task_id)
    assert (again.key, again.attempt, again.referred) == ("bad", 2, ("a", "x"))
    assert again.input == '{"value": ["${x.output.y}", {"$ref": "a.output"}]}'
    await world.end([again], lambda item: "mended")
    await world.run(task_id)
    shown = await me.get(f"/tasks/{task_id}")
    assert (shown["status"], shown["result"]) == ("COMPLETED", "after")
    assert {one["id"]: one["attempts"] for one in shown["subtasks"]} == {"a": 1, "x": 1, "bad": 2, "after": 1}
    assert next(one for one in shown["subtasks"] if one["id"] == "bad")["depends_on"] == ["a", "x"]


@pytest.mark.parametrize(
    ("given", "pointer", "said"),
    [
        ({}, "/input/value", "is missing"),
        ({"value": 1, "more": 2}, "/input/more", "is not a field"),
        ({"value": {"$ref": "b.output"}}, "/input/value", "no such subtask"),
        ({"value": "${bad.output}"}, "/input/value", "own output"),
        ({"value": {"$ref": "after.output"}}, "/input/value", "SKIPPED"),
        ({"value": {"$ref": "a.output.["}}, "/input/value", "JMESPath"),
        ({"value": {"$secret": "s"}}, "/input/value", "secret"),
        ([], "/input", ""),
    ],
)
async def test_a_wrong_input_is_told_with_its_place_and_changes_nothing(
    world: World, given: Any, pointer: str, said: str
) -> None:
    me = await world.user()
    task_id = await stuck_chain(world, me)
    letter = await only(me)
    answer = await me.http.post(f"/api/v1/dead-letters/{letter['id']}/retry", json={"input": given})
    assert answer.status_code == 422
    fault = answer.json()["errors"][0]
    assert fault["pointer"].startswith(pointer)
    assert said in fault["message"]
    assert (await me.get(f"/tasks/{task_id}"))["status"] == "FAILED"
    assert (await only(me))["status"] == "open"
