"""From an answer to a plan that can run, questions, or faults in the model's own words."""

from __future__ import annotations

import json
from typing import Any

from rayloom.dag.errors import Fault
from rayloom.dag.model import Message
from rayloom.dag.plan import parse_plan
from rayloom.dag.planning.minimal import minimal
from rayloom.dag.planning.read import Reading
from rayloom.dag.planning.repair import own_words, repair_messages, shown
from rayloom.dag.planning.verdict import Verdict, judge
from rayloom.dag.verify import verify
from tests.unit.dag.planning.views import VIEWS


def of(value: Any) -> Verdict:
    return judge(json.dumps(value), prompt="x", language="en", tools=VIEWS, nodes=())


def test_a_plan_that_can_run_with_minimal_dependencies() -> None:
    verdict = of(
        {
            "intent": "i",
            "questions": ["Which one?"],
            "subtasks": [
                {"id": "a", "tool": "any"},
                {"id": "b", "tool": "any", "after": ["a"]},
                {"id": "c", "tool": "any", "after": ["a", "b"]},
                {"id": "d", "do": "x", "after": ["c", "a"]},
            ],
        }
    )
    assert verdict.faults == ()
    assert verdict.verified is not None
    assert verdict.plan is not None
    subtasks: Any = verdict.plan["subtasks"]
    assert [each.get("depends_on") for each in subtasks] == [None, ["a"], ["b"], None]
    assert verdict.verified.critical_path == ("a", "b", "c", "d")
    assert verdict.brief.intent == "i"
    assert any("would have asked" in note for note in verdict.notes)
    assert any("are left out" in note for note in verdict.notes)


def test_a_plan_that_is_minimal_already_stays() -> None:
    verdict = of({"subtasks": [{"id": "a", "tool": "any"}, {"id": "b", "tool": "any", "after": ["a"]}]})
    assert verdict.notes == ()


def test_questions_are_neither_plan_nor_fault() -> None:
    verdict = of({"questions": ["Which?"], "subtasks": []})
    assert (verdict.plan, verdict.faults, verdict.brief.questions) == (None, (), ("Which?",))


def test_faults_have_the_places_and_words_of_the_answer() -> None:
    verdict = of(
        {
            "subtasks": [
                {"id": "a", "tool": "any"},
                {"id": "a", "tool": "any"},
                {"id": "b", "tool": "http.fetch", "after": ["x"]},
                {"id": "c", "tool": "think"},
                {"id": "d", "type": "TOOL", "do": "y"},
                {"id": "e", "tool": "http.fetch_text"},
            ]
        }
    )
    assert {fault.pointer: fault.message for fault in verdict.faults} == {
        "/subtasks/2/after/0": "(b) there is no subtask `x`",
        "/subtasks/2/tool": "(b) there is no tool `http.fetch`; did you mean http.fetch_text?",
        "/subtasks/3/do": "(c) is missing: REASONING needs an instruction",
        "/subtasks/4/tool": "(d) is missing: TOOL needs a tool",
        "/subtasks/5/input/url": "(e) is missing",
    }


def test_what_can_not_be_read_is_not_verified() -> None:
    assert [fault.pointer for fault in of({"subtasks": [1]}).faults] == ["/subtasks/0"]
    assert judge("nothing", prompt="x", language="en", tools=VIEWS, nodes=()).faults


def test_code_that_may_not_run_is_a_fault_of_its_tool() -> None:
    tools = {"any": VIEWS["any"]}
    text = json.dumps({"subtasks": [{"id": "a", "tool": "code", "do": "x"}]})
    found = judge(text, prompt="x", language="en", tools=tools, nodes=())
    assert "python.run" not in tools
    assert found.plan is not None or found.faults[0].pointer == "/subtasks/0/tool"


def test_faults_that_are_of_no_subtask_stay_as_they_are() -> None:
    reading = Reading(plan={"subtasks": [{"id": "a"}]}, notes=(), faults=(), places=(3,))
    faults = [Fault("", "x"), Fault("/subtasks/0", "y"), Fault("/subtasks/0/type", "z")]
    assert [fault.pointer for fault in own_words(faults, reading)] == ["", "/subtasks/3", "/subtasks/3/tool"]


def test_a_repair_says_what_was_answered_and_what_is_wrong_with_it() -> None:
    asked = (Message(speaker="user", text="plan"),)
    faults = [Fault(f"/subtasks/{place}", "wrong") for place in range(20)]
    *before, answer, told = repair_messages(asked, "x" * 9_000, faults)
    assert before == list(asked)
    assert len(answer.text) < 7_000
    assert "/subtasks/0: wrong" in told.text
    assert "and 8 more" in told.text
    assert repair_messages(asked, "", [Fault("", "empty")])[1].text == "(nothing)"
    assert repair_messages(asked, "{}", [Fault("", "empty")])[2].text.count("\n") == 2
    assert shown(faults[:1]) == "/subtasks/0: wrong"
    assert shown([Fault("", "x"), *faults], most=1) == "/: x; and 20 more"


def test_minimal_keeps_what_runs_before_what() -> None:
    raw = {
        "subtasks": [
            {"id": "a", "type": "TOOL", "tool": "any"},
            {"id": "b", "type": "TOOL", "tool": "any", "input": {"x": {"$ref": "a.output"}}, "depends_on": ["a", "a"]},
            {"id": "c", "type": "TOOL", "tool": "any", "depends_on": ["a", "b"]},
        ]
    }
    before = verify(parse_plan(raw), tools=VIEWS, nodes=())
    plan, removed = minimal(before)
    after = verify(parse_plan(plan), tools=VIEWS, nodes=())
    assert removed == 3
    assert (after.width, after.critical_path) == (before.width, before.critical_path)
    assert [each.dependencies for each in after.subtasks] == [(), (0,), (1,)]
