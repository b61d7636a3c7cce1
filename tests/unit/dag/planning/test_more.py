"""More of a plan that runs: what a model is told of it, and what of its answer can be added."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag.model import Message
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.more import judge_more, more_messages
from rayloom.dag.planning.verdict import Verdict
from rayloom.dag.replan import Reached, ReplanRequest
from rayloom.dag.values import JsonObject
from rayloom.dag.verify import verify
from tests.unit.dag.planning.views import VIEWS

PLAN: JsonObject = {
    "subtasks": [
        {"id": "a", "type": "TOOL", "tool": "any"},
        {"id": "b", "type": "TOOL", "tool": "any", "depends_on": ["a"]},
        {"id": "c", "type": "TOOL", "tool": "any", "depends_on": ["b"]},
    ]
}
REACHED = (
    Reached(key="a", status="COMPLETED", is_done=True, output='{"x": 1}'),
    Reached(key="b", status="BLOCKED", is_done=False, error="TIMED_OUT: too slow"),
    Reached(key="c", status="SKIPPED", is_done=False),
)


def request(*, reached: tuple[Reached, ...] = REACHED, plan: JsonObject = PLAN) -> ReplanRequest:
    asked = PlanRequest(task_id="t", prompt="look", context={}, tools=VIEWS)
    return ReplanRequest(request=asked, plan=plan, reached=reached, reason="b is BLOCKED")


def judged(*subtasks: Any) -> Verdict:
    return judge_more(json.dumps({"intent": "look", "subtasks": subtasks}), request(), language="en")


def test_a_model_is_told_where_everything_is() -> None:
    first = Message(speaker="user", text="plan")
    asked, told = more_messages([first], request())
    assert asked is first
    assert '- a: COMPLETED {"x": 1}\n- b: BLOCKED TIMED_OUT: too slow\n- c: SKIPPED\n' in told.text
    assert "b is BLOCKED" in told.text


def test_of_many_it_is_told_the_first() -> None:
    many = tuple(Reached(key=f"s{n}", status="COMPLETED", is_done=True) for n in range(100))
    (told,) = more_messages([], request(reached=many))
    assert "- s59: COMPLETED\nand 40 more\n" in told.text


def test_what_is_added_may_use_what_is_done() -> None:
    verdict = judged(
        {"id": "d", "tool": "any", "after": ["a"]}, {"id": "e", "tool": "think", "do": "say so", "after": ["d", "a"]}
    )
    assert verdict.faults == ()
    assert verdict.plan is not None
    assert [each["id"] for each in subtasks_of(verdict.plan)] == ["d", "e"]
    assert verdict.verified is not None
    assert [each.spec.id for each in verdict.verified.subtasks] == ["a", "b", "c", "d", "e"]


def test_an_id_that_is_taken_is_numbered() -> None:
    verdict = judged({"id": "b", "tool": "any"})
    assert verdict.plan is not None
    (added,) = subtasks_of(verdict.plan)
    assert added["id"] not in ("a", "b", "c")


def test_who_names_what_gave_nothing_means_the_new_one_of_that_id() -> None:
    verdict = judged(
        {"id": "e", "tool": "any", "input": {"x": "${b.output.y}", "z": {"$ref": "c.output"}}, "after": ["b", "a"]},
        {"id": "b", "tool": "any", "after": ["b"]},
        {"id": "c!", "tool": "any"},
        # That is its own id, and so nobody else's.
        {"id": "b_2", "tool": "any", "after": ["b"]},
    )
    assert verdict.faults == ()
    assert verdict.plan is not None
    e, b, c, other = subtasks_of(verdict.plan)
    assert (e["id"], b["id"], c["id"], other["id"]) == ("e", "b_3", "c_2", "b_2")
    assert e["input"] == {"x": "${b_3.output.y}", "z": {"$ref": "c_2.output"}}
    assert (b.get("depends_on", []), other["depends_on"]) == ([], ["b_3"])
    assert "the id `b` of subtask 2 is written `b_3`" in verdict.notes


@pytest.mark.parametrize("more", [{"after": ["a"]}, {"input": {"x": "${a.output}"}}])
def test_who_may_mean_what_is_done_or_a_new_one_is_asked(more: JsonObject) -> None:
    assert judged({"id": "a", "tool": "any"}, {"id": "d", "tool": "any"}).faults == ()
    (fault,) = judged({"id": "a", "tool": "any"}, {"id": "d", "tool": "any", **more}).faults
    assert (fault.pointer, fault.message[:24]) == ("/subtasks/1", "`a` is done, and a new s")


@pytest.mark.parametrize(
    ("subtask", "pointer", "said"),
    [
        ({"id": "d", "tool": "any", "after": ["b"]}, "/subtasks/0", "(d) `b` gave nothing"),
        ({"id": "d", "tool": "nothing"}, "/subtasks/0/tool", "(d) there is no tool `nothing`"),
        ("d", "/subtasks/0", "is no object"),
    ],
)
def test_what_is_wrong_is_told_in_the_places_of_the_answer(subtask: Any, pointer: str, said: str) -> None:
    (fault,) = judged(subtask).faults
    assert (fault.pointer, fault.message[: len(said)]) == (pointer, said)


@pytest.mark.parametrize("text", ['{"intent":"none","subtasks":[]}', '{"subtasks":[],"questions":["which?"]}'])
def test_nothing_to_add_is_an_answer(text: str) -> None:
    verdict = judge_more(text, request(), language="en")
    assert (verdict.plan, verdict.faults, verdict.verified) == ({"subtasks": []}, (), None)


def test_what_is_no_json_is_a_fault() -> None:
    verdict = judge_more("I can't", request(), language="en")
    assert (verdict.plan, len(verdict.faults)) == (None, 1)


def test_a_plan_that_is_none_has_no_subtasks() -> None:
    assert subtasks_of({"subtasks": "x"}) == subtasks_of({}) == []
    assert subtasks_of({"subtasks": [1, {"id": "a"}]}) == [{"id": "a"}]


@given(
    st.lists(
        st.fixed_dictionaries(
            {"id": st.sampled_from("abcdef"), "tool": st.sampled_from(["any", "think", "nothing"])},
            optional={"after": st.lists(st.sampled_from("abcdefg"), max_size=3), "do": st.just("say so")},
        ),
        max_size=5,
    )
)
def test_what_may_be_added_can_run(subtasks: list[Any]) -> None:
    verdict = judged(*subtasks)
    assert (verdict.plan is None) == bool(verdict.faults)
    if verdict.plan is not None:
        whole: JsonObject = {"subtasks": [*subtasks_of(PLAN), *subtasks_of(verdict.plan)]}
        known = {"a", "b", "c"}
        verify(parse_plan(whole), tools=VIEWS, nodes=(), model_available=True, done=known, unusable=known - {"a"})


def test_another_joiner_takes_the_place_of_the_old_one() -> None:
    joiner: JsonObject = {"id": "end", "type": "REASONING", "instruction": "Tell", "input": {"a": {"$ref": "a.output"}}}
    plan: JsonObject = {"subtasks": [{"id": "a", "type": "TOOL", "tool": "any"}, joiner]}
    reached = tuple(Reached(key=key, status="COMPLETED", is_done=True) for key in ("a", "end"))
    asked = replace(request(reached=reached, plan=plan), joiner="end")
    text = json.dumps({"intent": "look", "subtasks": [{"id": "d", "tool": "any"}]})
    verdict = judge_more(text, asked, language="en")
    assert verdict.plan is not None
    assert verdict.verified is not None
    added = subtasks_of(verdict.plan)
    assert [each["id"] for each in added] == ["d", verdict.joiner] == ["d", "answer"]
    last = verdict.verified.subtasks[-1]
    seen = [verdict.verified.subtasks[ordinal].spec.id for ordinal in last.dependencies]
    assert sorted(seen) == ["a", "d", "end"]
