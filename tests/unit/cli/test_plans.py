"""Plans of prompts on the command line: a tree, what it would take, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.responses import JSONResponse

from tests.unit.cli.api import FakeApi, problem

Rayloom = Callable[..., int]
Capture = pytest.CaptureFixture[str]
PATH = "POST /api/v1/plans"
PLAN = {
    "subtasks": [
        {"id": "oslo", "type": "TOOL", "tool": "weather.get", "input": {"city": "Oslo"}},
        {"id": "rome", "type": "TOOL", "tool": "weather.get", "input": {"city": "Rome"}},
        {"id": "both", "type": "REASONING", "instruction": "Compare\nthem", "depends_on": ["oslo"],
         "input": {"rome": {"$ref": "rome.output"}}},
    ]
}  # fmt: skip
ANSWER = {
    "plan": PLAN,
    "source": "model",
    "repairs": 1,
    "width": 2,
    "critical_path": ["oslo", "both"],
    "estimate": {"tokens": 2_800, "cost_usd": 0.0125, "seconds": 4.5},
    "usage": {"tokens": 30, "cost_usd": 0.0},
    "brief": {"intent": "compare", "entities": ["Oslo", "Rome"], "budget": {"max_tokens": 5}},
    "warnings": ["/plan/subtasks/2: \x1b[31mwrong"],
}


def test_a_plan_is_a_tree_and_what_it_would_take(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    api.script[PATH] += [JSONResponse(ANSWER), JSONResponse(ANSWER)]
    assert rayloom("plan", "Compare Oslo and Rome") == 0
    assert capsys.readouterr().out.splitlines() == [
        "oslo  weather.get",
        "rome  weather.get",
        "  both  REASONING  + oslo  Compare them",
        "",
        "source\tmodel",
        "repairs\t1",
        "width\t2",
        "critical path\toslo -> both",
        "estimate\t2,800 tokens, 0.0125 USD, 4.5 s",
        "planning used\t30 tokens",
        "intent\tcompare",
        "entities\tOslo, Rome",
        "budget\tmax_tokens 5",
        "! /plan/subtasks/2: \\x1b[31mwrong",
    ]
    assert rayloom("plan", "Compare Oslo and Rome", "--json") == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_what_is_asked_for_goes_along(rayloom: Rayloom, api: FakeApi, tmp_path: Path) -> None:
    tools, file = tmp_path / "tools.json", tmp_path / "file.json"
    tools.write_text('[{"name": "x", "schema": {}}]')
    file.write_text('{"prompt": "old", "budget": {"deadline_s": 9}}')
    api.script[PATH].append(JSONResponse(ANSWER))
    options = ("--file", str(file), "--tools", str(tools), "--context", '{"a": 1}', "--max-tokens", "5")
    assert rayloom("plan", "new", *options) == 0
    assert json.loads(api.sent[-1][1]) == {
        "prompt": "new",
        "budget": {"deadline_s": 9, "max_tokens": 5},
        "tools": [{"name": "x", "schema": {}}],
        "context": {"a": 1},
    }
    assert rayloom("plan") == 2


def test_questions_and_faults_are_told(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    faults = [{"pointer": "/prompt", "message": "Which city?"}]
    api.script[PATH].append(problem(422, "the request leaves open: Which city?", errors=faults))
    assert rayloom("plan", "The weather") == 1
    assert capsys.readouterr().err.splitlines() == [
        "rayloom: the request leaves open: Which city?", "  /prompt: Which city?",
    ]  # fmt: skip
