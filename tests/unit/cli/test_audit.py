"""`rayloom audit`: what it asks for, and what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from tests.unit.cli.api import FakeApi

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]
CALL: dict[str, Any] = {
    "at": "now", "user": "ann", "tool": "core.echo", "outcome": "FAILED", "code": "BOOM", "task_id": "t1",
    "subtask": "only", "attempt": 2, "input_sha256": "f00d", "called": True,
}  # fmt: skip


def test_calls_are_listed_and_filtered(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    page = {"items": [CALL], "next_cursor": None}
    api.script["GET /api/v1/audit"] += [JSONResponse(page), JSONResponse(page)]
    assert rayloom("audit") == 0
    assert capsys.readouterr().out == "now\tann\tcore.echo\tFAILED\tBOOM\tt1\tonly\t2\tf00d\n"
    assert rayloom("audit", "--tool", "x", "--task", "t", "--key-id", "k", "--user-id", "u", "--json") == 0
    assert json.loads(capsys.readouterr().out) == page
    assert api.sent[-1][0] == "user_id=u&key_id=k&task_id=t&tool=x&limit=50"


def test_a_narrow_key_is_asked_for_and_shown(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    key = {"id": "k", "user": "ann", "role": "user", "created_at": "now", "user_id": "u"}
    api.script["POST /api/v1/keys"].append(JSONResponse({**key, "key": "rl_x"}, 201))
    globs = ["--allow", "core.*", "--allow", "x", "--deny", "y"]
    assert rayloom("keys", "create", "--user", "ann", *globs, "--max-level", "read") == 0
    rules = {"allow": ["core.*", "x"], "deny": ["y"]}
    assert json.loads(api.sent[-1][1]) == {"user": "ann", "role": "user", "tools": rules, "max_level": "read"}
    capsys.readouterr()
    items = [{**key, "tools": rules, "max_level": "read"}, {**key, "tools": None, "max_level": None}]
    api.script["GET /api/v1/keys"].append(JSONResponse({"items": items, "next_cursor": None}))
    assert rayloom("keys") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "k\tann\tuser\tnow\tup to read, allow core.* x, deny y"
    assert lines[1].rstrip("\t") == "k\tann\tuser\tnow"
