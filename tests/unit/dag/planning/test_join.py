"""The joiner of a plan: what it sees, when it is one that is there already, and who takes its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rayloom.dag.planning.join import join, join_again, wanted_answer, with_results
from rayloom.dag.planning.verdict import Verdict, judge
from rayloom.dag.values import JsonObject
from tests.unit.dag.planning.views import VIEWS

TOLD: JsonObject = {"whole_request": {"$literal": "p"}}
A: JsonObject = {"id": "a", "type": "TOOL", "tool": "any"}
B: JsonObject = {"id": "b", "type": "CODE_GEN", "instruction": "x", "input": {"a": {"$ref": "a.output"}}}
C: JsonObject = {"id": "c", "type": "TOOL", "tool": "any", "depends_on": ["a"]}
THINK: JsonObject = {
    "id": "t",
    "type": "REASONING",
    "instruction": "Say so",
    "input": {"b": {"$ref": "b.output.result"}},
}


def input_of(subtask: Any) -> dict[str, Any]:
    given = dict(subtask["input"])
    assert given.pop("output_schema")["required"] == ["answer", "more"]
    return given


def test_it_sees_the_results_of_all_last_subtasks() -> None:
    subtasks, id_ = join([A, B, C], "Tell all", TOLD)
    assert subtasks[:3] == [A, B, C]
    joiner = subtasks[3]
    assert (id_, joiner["id"], joiner["type"]) == ("answer", "answer", "REASONING")
    assert str(joiner["instruction"]).startswith("Tell all\n")
    assert input_of(joiner) == {**TOLD, "b": {"$ref": "b.output.result"}, "c": {"$ref": "c.output"}}


def test_a_model_that_says_the_last_word_is_asked_for_the_answer_itself() -> None:
    subtasks, id_ = join([A, B, THINK], "Be brief", TOLD)
    assert (len(subtasks), id_) == (3, "t")
    assert str(subtasks[2]["instruction"]).startswith("Say so\nBe brief\n")
    assert input_of(subtasks[2]) == THINK["input"]
    # What has a form of its own already keeps it.
    formed: JsonObject = {**THINK, "input": {"output_schema": {}, "b": {"$ref": "b.output.result"}}}
    assert join([A, B, formed], "Be brief", TOLD)[1] == "answer"
    assert join([{"id": "answer", "type": "TOOL", "tool": "any"}], "x", TOLD)[1] == "answer_2"


def test_the_next_one_sees_the_old_one_and_all_that_is_new() -> None:
    before, joiner = join([A, B, C], "Tell all", TOLD)
    added, id_ = join_again(
        before, [{"id": "d", "type": "TOOL", "tool": "any"}], joiner, {"a", "b", "c", "answer"}, TOLD
    )
    assert [each["id"] for each in added] == ["d", "answer_2"]
    assert id_ == "answer_2"
    assert added[1]["instruction"] == before[3]["instruction"]
    results = {name: {"$ref": f"{name}.output"} for name in ("c", "answer", "d")}
    assert input_of(added[1]) == {**TOLD, "b": {"$ref": "b.output.result"}, **results}


def test_the_next_one_does_without_what_was_left_aside() -> None:
    before, joiner = join([A, B, C], "Tell all", TOLD)
    added, _ = join_again(before, [{"id": "d", "type": "TOOL", "tool": "any"}], joiner, {"a", "c"}, TOLD)
    assert sorted(input_of(added[1])) == ["c", "d", "whole_request"]


def test_who_has_the_last_word_sees_results_from_afar() -> None:
    far: JsonObject = {"id": "m", "type": "REASONING", "instruction": "x", "depends_on": ["b"]}
    last: JsonObject = {"id": "l", "type": "REASONING", "instruction": "x", "input": {"x": {"$ref": "m.output.text"}}}
    found = with_results([A, B, far, last, C])
    # Neither what it sees already, nor what a tool gave, nor one that is not the last.
    assert found[:3] == [A, B, far]
    assert found[3]["input"] == {"x": {"$ref": "m.output.text"}, "b": {"$ref": "b.output.result"}}
    assert found[4] == C
    (same,) = with_results([{"id": "z", "type": "REASONING", "instruction": "x"}])
    assert "input" not in same


def test_of_what_was_before_it_sees_what_is_done() -> None:
    gone: JsonObject = {"id": "g", "type": "CODE_GEN", "instruction": "x"}
    mid: JsonObject = {"id": "m", "type": "REASONING", "instruction": "x", "depends_on": ["b", "g"]}
    last: JsonObject = {"id": "l", "type": "REASONING", "instruction": "x", "depends_on": ["m"]}
    (found,) = with_results([last], before=[A, B, gone, mid], done={"a", "b", "m"})
    assert found["input"] == {"b": {"$ref": "b.output.result"}, "m": {"$ref": "m.output.text"}}


@pytest.mark.parametrize("said", [None, "", "  ", 5, ["x"]])
def test_no_word_wants_no_answer(said: Any) -> None:
    assert wanted_answer({"answer": said}) == ""


def judged(*subtasks: Any, **more: Any) -> Verdict:
    text = json.dumps({"intent": "look", "subtasks": subtasks, **more})
    return judge(text, prompt="p", language="en", tools=VIEWS, nodes=())


def test_a_plan_comes_with_its_joiner() -> None:
    steps = ({"id": "a", "tool": "any"}, {"id": "b", "tool": "any"})
    verdict = judged(*steps, answer="Tell both")
    assert (verdict.joiner, verdict.faults) == ("answer", ())
    assert verdict.verified is not None
    last = verdict.verified.subtasks[-1]
    assert (last.spec.id, [verdict.verified.subtasks[ordinal].spec.id for ordinal in last.dependencies]) == (
        "answer",
        ["a", "b"],
    )
    assert judged(*steps).joiner == ""
