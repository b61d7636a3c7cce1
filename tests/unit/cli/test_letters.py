"""The commands on dead letters, and those that retry and fork a task: what they send, and what they show."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from rayloom.cluster.cli import letters, reruns
from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.output import Output
from rayloom.serve.client import Client
from rayloom.serve.routes.letters import BULK_TIMEOUT_S
from tests.unit.cli.api import FakeApi

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
LETTER: dict[str, Any] = {
    "id": "l1", "task_id": "t1", "subtask": "fetch", "tool": "http.request", "fingerprint": "f00d", "attempts": 2,
    "error": {"code": "HTTP_503", "message": "no\nanswer"}, "input": {"url": "u"}, "status": "open", "at": "now",
}  # fmt: skip


def answer(api: FakeApi, call: str, document: object, status: int = 200) -> None:
    """The next answer of a route."""
    api.script[call].append(JSONResponse(document, status))


def test_letters_are_listed_with_their_causes(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    page = {"items": [LETTER], "next_cursor": None}
    for arguments in ((), ("list",)):
        answer(api, "GET /api/v1/dead-letters", page)
        assert rayloom("dead-letters", *arguments) == 0
        assert capsys.readouterr().out == "l1\topen\tt1\tfetch\thttp.request\tHTTP_503: no answer\n"
    answer(api, "GET /api/v1/dead-letters", page)
    filters = ["--tool", "x", "--task", "t", "--code", "C", "--label", "a=b", "--label", "c=d", "--status", "retried"]
    assert rayloom("dead-letters", "list", *filters, "--json") == 0
    assert json.loads(capsys.readouterr().out) == page
    assert api.sent[-1][0] == "status=retried&tool=x&task_id=t&code=C&label=a%3Db&label=c%3Dd&limit=50"


def test_causes_are_counted(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    group = {"fingerprint": "f00d", "count": 334, "sample": LETTER}
    answer(api, "GET /api/v1/dead-letters", {"items": [group], "next_cursor": None})
    assert rayloom("dead-letters", "list", "--group") == 0
    assert capsys.readouterr().out == "f00d\t334\thttp.request\tHTTP_503: no answer\n"
    assert "group=fingerprint" in api.sent[-1][0]


def test_a_letter_is_shown_with_its_attempts_and_input(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    attempt = {"attempt": 1, "status": "FAILED", "duration_ms": 1500, "error": LETTER["error"]}
    answer(api, "GET /api/v1/dead-letters/l1", LETTER | {"attempts": [attempt]})
    assert rayloom("dead-letters", "show", "l1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["id\tl1", "status\topen"]
    assert "error\tHTTP_503: no answer" in lines
    assert "1\tFAILED\t1.5 s\tHTTP_503: no answer" in lines
    assert "".join(lines[lines.index("input:") + 1 :]) == '{  "url": "u"}'


def test_one_letter_is_retried_or_discarded(rayloom: Rayloom, api: FakeApi, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"url": "v"}')
    for verb, more, sent in (
        ("retry", (), {}),
        ("retry", ("--input", '{"url": "w"}'), {"input": {"url": "w"}}),
        ("retry", ("--input", f"@{tmp_path / 'input.json'}"), {"input": {"url": "v"}}),
        ("discard", (), {}),
    ):
        answer(api, f"POST /api/v1/dead-letters/l1/{verb}", {"status": "x"}, 202)
        assert rayloom("dead-letters", verb, "l1", *more) == 0
        assert capsys.readouterr().out == f"letter l1: {verb} accepted\n"
        assert json.loads(api.sent[-1][1]) == sent


def test_many_letters_are_retried_or_discarded_by_filter(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    for verb, more, sent in (
        ("retry", ("--fingerprint", "f", "--label", "a=b"), {"fingerprint": "f", "labels": {"a": "b"}}),
        ("discard", ("--tool", "t", "--created-before", "b"), {"tool": "t", "created_before": "b"}),
        ("retry", ("--all",), {}),
    ):
        answer(api, f"POST /api/v1/dead-letters/{verb}", {"matched": 5, "accepted": 4}, 202)
        assert rayloom("dead-letters", verb, *more) == 0
        assert capsys.readouterr().out == "matched\t5\naccepted\t4\n"
        assert json.loads(api.sent[-1][1]) == {"filter": sent, "dry_run": False}
    answer(api, "POST /api/v1/dead-letters/retry", {"matched": 5, "accepted": 0})
    assert rayloom("dead-letters", "retry", "--all", "--dry-run", "--json") == 0
    assert json.loads(api.sent[-1][1])["dry_run"] is True


@pytest.mark.parametrize(
    "arguments",
    [
        ("dead-letters", "retry"),
        ("dead-letters", "discard", "--dry-run"),
        ("dead-letters", "retry", "l1", "--all"),
        ("dead-letters", "retry", "l1", "--tool", "t"),
        ("dead-letters", "retry", "--all", "--input", "{}"),
        ("dead-letters", "retry", "l1", "--input", "[]"),
        ("fork", "t1"),
        ("fork", "t1", "--from", "a", "--input", "a"),
        ("retry",),
    ],
)
def test_wrong_usage_sends_nothing(rayloom: Rayloom, api: FakeApi, capsys: Capture, arguments: tuple[str, ...]) -> None:
    assert rayloom(*arguments) == 2
    assert "Error" in capsys.readouterr().err
    assert api.requests == []


def test_a_task_is_retried(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    answer(api, "POST /api/v1/tasks/t1/retry", {"task_id": "t1", "status": "PROCESSING", "retried": ["a", "b"]}, 202)
    assert rayloom("retry", "t1", "--subtask", "a", "--subtask", "b", "--budget-deadline-s", "60") == 0
    assert capsys.readouterr().out == "a\nb\n"
    assert json.loads(api.sent[-1][1]) == {"subtasks": ["a", "b"], "budget": {"deadline_s": 60.0}}
    task_id = api.add({"title": "tea"})
    answer(api, f"POST /api/v1/tasks/{task_id}/retry", {"task_id": task_id, "retried": ["a"]}, 202)
    assert rayloom("retry", task_id, "--watch") == 0
    assert "PROCESSING -> COMPLETED" in capsys.readouterr().out


def test_a_task_is_forked(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    answer(api, "POST /api/v1/tasks/t1/fork", {"task_id": "t2"}, 202)
    assert rayloom("fork", "t1", "--from", "a", "--from", "b", "--input", 'a={"value": "x=y"}') == 0
    assert capsys.readouterr().out == "t2\n"
    assert json.loads(api.sent[-1][1]) == {"from": ["a", "b"], "inputs": {"a": {"value": "x=y"}}}
    # A lost answer makes no second task.
    assert api.requests[-1][2]["idempotency-key"]
    task_id = api.add({"title": "tea"})
    answer(api, "POST /api/v1/tasks/t1/fork", {"task_id": task_id}, 202)
    assert rayloom("fork", "t1", "--from", "a", "--watch") == 0
    assert "PROCESSING -> COMPLETED" in capsys.readouterr().out


def test_an_admin_acts_on_somebody_elses_letters(rayloom: Rayloom, api: FakeApi) -> None:
    answer(api, "GET /api/v1/dead-letters/l1", LETTER)
    assert rayloom("dead-letters", "show", "l1", "--user-id", "u") == 0
    assert api.sent[-1][0] == "user_id=u"
    for verb in ("retry", "discard"):
        for which, path in (("l1", f"/l1/{verb}"), ("--all", f"/{verb}")):
            answer(api, f"POST /api/v1/dead-letters{path}", {"matched": 1, "accepted": 1}, 202)
            assert rayloom("dead-letters", verb, which, "--user-id", "u") == 0
            assert api.sent[-1][0] == "user_id=u"


def test_what_may_take_long_is_waited_for(rayloom: Rayloom, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float | None] = []

    def waiting(*, timeout_s: float | None = 30.0, **more: Any) -> Client:
        waited.append(timeout_s)
        return connect(timeout_s=timeout_s, **more)

    for module in (letters, reruns):
        monkeypatch.setattr(module, "connect", waiting)
    for route, arguments in (
        ("/api/v1/dead-letters/retry", ("dead-letters", "retry", "--all")),
        ("/api/v1/dead-letters/discard", ("dead-letters", "discard", "--all")),
        ("/api/v1/tasks/t1/retry", ("retry", "t1")),
        ("/api/v1/tasks/t1/fork", ("fork", "t1", "--from", "a")),
    ):
        answer(api, f"POST {route}", {"task_id": "t2"}, 202)
        assert rayloom(*arguments) == 0
    assert min(each or 0 for each in waited) > BULK_TIMEOUT_S
    assert len(waited) == 4


def test_the_next_page_has_the_same_filters(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "rich", True)
    for route, command, options in (
        ("dead-letters", "dead-letters list", "--tool t --label a=b --label 'c=d e' --group --user-id u --limit 7"),
        ("dead-letters", "dead-letters list", ""),
        ("tasks", "list", "--status FAILED --priority 3 --query 'two words'"),
    ):
        answer(api, f"GET /api/v1/{route}", {"items": [], "next_cursor": "here"})
        assert rayloom(*command.split(), *shlex.split(options)) == 0
        more = " ".join(["more: rayloom", command, *filter(None, [options]), "--cursor here"])
        assert capsys.readouterr().out.splitlines()[-1] == more
