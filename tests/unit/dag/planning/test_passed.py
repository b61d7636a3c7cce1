"""What subtasks are passed beside outputs."""

from __future__ import annotations

from rayloom.dag.plan import subtasks_of
from rayloom.dag.planning.passed import patient, told_to_all
from rayloom.dag.values import JsonObject


def test_the_request_and_its_context_are_told_as_they_are() -> None:
    assert told_to_all("say ${a.output}", {}) == {"whole_request": {"$literal": "say ${a.output}"}}
    told = told_to_all("p", {"k": {"$ref": "x"}})
    assert told["context"] == {"$literal": {"k": {"$ref": "x"}}}


def test_what_a_slow_model_does_may_take_its_time() -> None:
    plan: JsonObject = {
        "subtasks": [
            {"id": "t", "type": "REASONING"},
            {"id": "c", "type": "CODE_GEN", "input": {"x": 1}},
            {"id": "p", "type": "CODE_GEN", "input": {"code": "1"}},
            {"id": "r", "type": "CODE_GEN", "tool": "python.run"},
            {"id": "d", "type": "TOOL", "tool": "any"},
        ]
    }
    slow = subtasks_of(patient(plan, think_s=900.0, code_s=10_000_000.0))
    assert [each.get("timeout_s") for each in slow] == [900.0, 86_400, None, None, None]
    assert patient(plan, think_s=20.0, code_s=20.0) == plan


def test_a_long_context_is_not_copied_everywhere() -> None:
    assert "context" not in told_to_all("p", {"k": "x" * 100_000})
