"""What begins before its plan is whole only reads, and stands on what has begun."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.plan import parse_plan
from rayloom.dag.planning.early import may_begin, may_plan_begin
from rayloom.dag.tool_view import ToolView

TOOLS = {
    "look": ToolView(name="look", schema={}, resources={}, permission_level="read"),
    "change": ToolView(name="change", schema={}, resources={}, permission_level="write"),
    "python.run": ToolView(name="python.run", schema={}, resources={}, permission_level="execute"),
}
LOOK: dict[str, Any] = {"id": "s", "type": "TOOL", "tool": "look"}


@pytest.mark.parametrize(
    ("more", "may"),
    [
        ({}, True),
        ({"depends_on": ["a"]}, True),
        ({"input": {"x": {"$ref": "a.output.y"}, "text": "${a.output} and ${HOME}"}}, True),
        ({"depends_on": ["a", "later"]}, False),
        ({"input": {"x": {"$ref": "later.output"}}}, False),
        ({"input": {"x": "${later.output}"}}, False),
        ({"input": {"x": {"$secret": "password"}}}, False),
        ({"require_approval": True}, False),
        ({"on_failure": "fallback", "fallback": {"tool": "change"}}, False),
        ({"tool": "change"}, False),
        ({"tool": "unknown"}, False),
        ({"type": "REASONING", "tool": None, "instruction": "think"}, False),
        ({"type": "CODE_GEN", "tool": None, "input": {"code": "1"}}, False),
        ({"type": "CODE_GEN", "tool": None, "instruction": "write it"}, False),
    ],
)
def test_what_may_begin(more: dict[str, Any], may: bool) -> None:
    (subtask,) = parse_plan({"subtasks": [{**LOOK, **more}]}).subtasks
    assert may_begin(subtask, tools=TOOLS, begun={"a"}) is may


def test_what_only_a_model_can_do_does_not_begin_though_its_tool_only_reads() -> None:
    tools = {"python.run": ToolView(name="python.run", schema={}, resources={}, permission_level="read")}
    (subtask,) = parse_plan({"subtasks": [{"id": "s", "type": "CODE_GEN", "instruction": "write it"}]}).subtasks
    assert not may_begin(subtask, tools=tools, begun=())


@pytest.mark.parametrize(
    ("options", "levels", "may"),
    [
        ({}, (), True),
        ({"budget": {"deadline_s": 5}}, ("write",), True),
        ({"budget": {"max_tokens": 5}}, (), False),
        ({"budget": {"max_cost_usd": 1}}, (), False),
        ({"require_approval": True}, (), False),
        ({}, ("read",), False),
    ],
)
def test_of_which_tasks_something_may_begin(options: dict[str, Any], levels: tuple[str, ...], may: bool) -> None:
    assert may_plan_begin(options, approval_levels=levels) is may
