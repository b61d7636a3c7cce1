"""One subtask on the command line, why it waits, what a cancel stopped, and webhooks."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fastapi.responses import JSONResponse

from tests.unit.cli.api import FakeApi

Rayloom = Callable[..., int]
Capture = pytest.CaptureFixture[str]
PATH = "GET /api/v1/tasks/t/subtasks/a"


def test_why_a_subtask_waits(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    reason = {"kind": "queue", "detail": "5 queued subtasks come first", "until": "2026-01-01T00:00:00Z"}
    answer = {"status": "QUEUED", "reasons": [reason]}
    api.script[f"{PATH}/waiting"] += [JSONResponse(answer), JSONResponse(answer)]
    assert rayloom("show", "t", "a", "--why") == 0
    assert capsys.readouterr().out.splitlines() == [
        "status\tQUEUED", "queue\t2026-01-01T00:00:00Z\t5 queued subtasks come first",
    ]  # fmt: skip
    assert rayloom("show", "t", "a", "--why", "--json") == 0
    assert json.loads(capsys.readouterr().out) == answer
    api.script[f"{PATH}/waiting"].append(JSONResponse({"status": "RUNNING", "reasons": []}))
    assert rayloom("show", "t", "a", "--why") == 0
    assert capsys.readouterr().out == "status\tRUNNING\n"
    assert rayloom("show", "t", "--why") == 2


def test_a_subtask_in_full(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    error = {"code": "HTTP_503", "message": "busy"}
    attempt = {"attempt": 1, "status": "FAILED", "started_at": "2026", "duration_ms": 12, "error": error}
    answer = {"id": "a", "status": "COMPLETED", "depends_on": ["x", "y"], "attempts": [attempt], "output": {"n": 1}}
    api.script[PATH].append(JSONResponse(answer))
    assert rayloom("show", "t", "a") == 0
    out = capsys.readouterr().out
    assert "depends_on\tx, y\n" in out
    assert "1\tFAILED\t2026\t12 ms\tHTTP_503: busy\n" in out
    assert '"n": 1' in out


def test_what_a_model_is_told_is_shown(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    answer = {"id": "a", "status": "QUEUED", "instruction": "Compare\nboth.", "skills": ["skill.maps"]}
    api.script[PATH].append(JSONResponse(answer))
    assert rayloom("show", "t", "a") == 0
    out = capsys.readouterr().out
    assert "instruction\tCompare both.\n" in out
    assert "skills\tskill.maps\n" in out


def test_cancel_says_what_was_stopped(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    stopped = [{"subtask": "a", "attempt": 2, "status": "RUNNING", "phase": "EXECUTING"}]
    answer = {"task_id": "t", "status": "CANCELLED", "stopped": stopped, "completed": {"count": 3, "subtasks": []}}
    api.script["POST /api/v1/tasks/t/cancel"].append(JSONResponse(answer, 202))
    assert rayloom("cancel", "t") == 0
    assert capsys.readouterr().out.splitlines() == [
        "task t is being cancelled", "stopped: a, attempt 2, in EXECUTING", "had completed: 3",
    ]  # fmt: skip


def test_a_webhook_is_asked_for_and_shown(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script["POST /api/v1/tasks"].append(JSONResponse({"task_id": "t", "callback_secret": "whsec_x"}, 202))
    assert rayloom("submit", "p", "--callback-url", "https://example.org/") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("t\n", "the webhook is signed with whsec_x\n")
    told = {
        "url": "https://example.org/",
        "status": "failed",
        "attempts": 10,
        "last_error": "the receiver answered 500",
    }
    api.script["GET /api/v1/tasks/t"].append(JSONResponse({"task_id": "t", "status": "COMPLETED", "webhook": told}))
    assert rayloom("show", "t") == 0
    assert "webhook\tfailed after 10 attempts: the receiver answered 500\n" in capsys.readouterr().out
