"""What subtasks are passed beside outputs."""

from __future__ import annotations

from rayloom.dag.planning.passed import told_to_all


def test_the_request_and_its_context_are_told_as_they_are() -> None:
    assert told_to_all("say ${a.output}", {}) == {"whole_request": {"$literal": "say ${a.output}"}}
    told = told_to_all("p", {"k": {"$ref": "x"}})
    assert told["context"] == {"$literal": {"k": {"$ref": "x"}}}


def test_a_long_context_is_not_copied_everywhere() -> None:
    assert "context" not in told_to_all("p", {"k": "x" * 100_000})
