"""The client: what it repeats, what it gives up, how its streams resume."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from rayloom.serve.answers import Busy, Rejected, Unreachable
from rayloom.serve.client import Client
from tests.unit.cli.api import KEY, FakeApi, problem


def _streams(api: FakeApi) -> list[str]:
    return [headers.get("last-event-id", "") for _, path, headers in api.requests if path.endswith("/events")]


def test_a_stream_that_breaks_off_is_resumed_after_the_last_event(api: FakeApi, client: Client) -> None:
    task_id = api.add({"title": "t"})
    api.cuts.extend([3, 0, 2])
    seen = [event.id for event in client.events(task_id)]
    assert seen == [str(number) for number in range(1, 11)]
    assert _streams(api) == ["", "3", "3", "5"]


def test_a_stream_that_ends_before_the_task_is_drained_and_then_believed(api: FakeApi, client: Client) -> None:
    task_id = api.add({"title": "t"})
    last = api.tasks[task_id].events.pop()
    assert [event.id for event in client.events(task_id)][-1] == "9"
    assert _streams(api) == ["", "9"]
    api.tasks[task_id].events.append(last)
    assert [event.id for event in client.events(task_id, after="9")] == ["10"]


def test_a_server_that_ignores_last_event_id_gives_nothing_twice(api: FakeApi, client: Client) -> None:
    task_id = api.add({"title": "t"})
    api.log.extend({"id": number, "message": f"line {number}"} for number in (1, 2, 3))
    assert [event.id for event in client.follow_logs(task_id)] == ["1", "2", "3"]


def test_an_unknown_task_has_no_stream(client: Client) -> None:
    with pytest.raises(Rejected) as caught:
        list(client.events("nobody"))
    assert caught.value.problem.status == 404


def test_a_submission_is_repeated_with_one_key_until_the_api_takes_it(api: FakeApi) -> None:
    waits: list[float] = []
    api.script["POST /api/v1/tasks"].extend([problem(503, "starting", retry_after="7"), problem(429, "slowly")])
    with Client(api.url, KEY, patience_s=30.0, pause=waits.append) as client:
        submitted = client.submit({"prompt": "p"})
    keys = {headers["idempotency-key"] for _, _, headers in api.requests}
    assert len(api.requests) == 3
    assert len(keys) == 1
    assert list(api.tasks) == [submitted.task_id]
    assert waits == [7.0, 0.4]


def test_the_same_key_gives_the_same_task(api: FakeApi, client: Client) -> None:
    first = client.submit({"prompt": "p"}, idempotency_key="k")
    again = client.submit({"prompt": "p"}, idempotency_key="k")
    assert (first.replayed, again.replayed) == (False, True)
    assert first.task_id == again.task_id


def test_patience_ends(api: FakeApi) -> None:
    now = [0.0]
    api.script["GET /api/v1/tasks/x"].extend(problem(503, "busy", retry_after="20") for _ in range(9))

    def pause(wait_s: float) -> None:
        now[0] += wait_s

    with Client(api.url, KEY, patience_s=50.0, clock=lambda: now[0], pause=pause) as client, pytest.raises(Busy):
        client.task("x")
    assert now[0] == 40.0


def test_a_server_fault_is_not_repeated_for_ever(api: FakeApi, client: Client) -> None:
    api.script["GET /api/v1/tasks/x"].extend(problem(500, "broken") for _ in range(9))
    with pytest.raises(Busy):
        client.task("x")
    assert len(api.requests) == 5


def test_a_post_without_a_key_is_sent_once(api: FakeApi, client: Client) -> None:
    api.script["POST /api/v1/keys"].append(problem(503, "busy"))
    with pytest.raises(Busy):
        client.post("/api/v1/keys", {"user": "u"})
    assert len(api.requests) == 1


def test_what_is_not_json_is_not_rayloom(api: FakeApi) -> None:
    api.script["GET /api/v1/tasks/x"].append(HTMLResponse("<h1>Path not found</h1>", 404))
    with Client(api.url, KEY) as client, pytest.raises(Unreachable, match="404"):
        client.task("x")


def test_nobody_at_the_address() -> None:
    with Client("http://127.0.0.1:1", KEY) as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.task("x")


def test_a_redirect_or_an_answer_without_a_task_is_not_rayloom(api: FakeApi, client: Client) -> None:
    api.script["POST /api/v1/tasks"].append(JSONResponse({"hello": "world"}, 200))
    with pytest.raises(Unreachable, match="no task_id"):
        client.submit({"prompt": "p"})
    api.script["GET /api/v1/tasks/x"].extend(RedirectResponse("/login") for _ in range(99))
    with Client(api.url, KEY) as hasty, pytest.raises(Unreachable, match="307"):
        hasty.task("x")


def test_an_api_that_restarts_while_it_is_watched_is_waited_for(api: FakeApi) -> None:
    task_id = api.add({"title": "t"})
    task = api.tasks[task_id]
    last = task.events.pop()
    task.details["status"] = "PROCESSING"
    waits: list[float] = []

    def pause(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 3:
            task.events.append(last)

    api.script[f"GET /api/v1/tasks/{task_id}"].append(problem(503, "shutting down"))
    with Client(api.url, KEY, pause=pause) as client:
        assert [event.id for event in client.events(task_id)] == [str(number) for number in range(1, 11)]
    assert len(waits) == 3


def test_a_quiet_stream_that_is_cut_now_and_then_is_followed_for_as_long_as_it_takes() -> None:
    now, opened = [0.0], [0]

    def quiet() -> Iterator[bytes]:
        opened[0] += 1
        yield b": nothing new\n\n"
        now[0] += 50.0
        raise httpx2.ReadError("cut")

    def answer(request: httpx2.Request) -> httpx2.Response:
        if opened[0] < 9:
            return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=quiet())
        return httpx2.Response(503)

    def pause(wait_s: float) -> None:
        now[0] += wait_s

    transport = httpx2.MockTransport(answer)
    with (
        Client("http://x", KEY, transport=transport, clock=lambda: now[0], pause=pause) as client,
        pytest.raises(Unreachable),
    ):
        list(client.events("t"))
    # Given up two minutes after the last time that it was open, not after the first cut.
    assert opened[0] == 9
    assert 9 * 50 + 110 < now[0] < 9 * 50 + 130
