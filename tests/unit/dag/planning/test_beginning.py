"""What of a plan may run before it is whole, and what the whole plan is with that."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.beginning import EarlyReader, held_back, joined
from rayloom.dag.planning.read import read_plan
from rayloom.dag.planning.written import ids_of
from rayloom.dag.resources import NodeShape
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verify import verify
from tests.unit.dag.planning.views import VIEWS

A: JsonObject = {"id": "a", "tool": "db.get", "input": {"limit": 1}, "after": []}
B: JsonObject = {"id": "b", "tool": "db.get", "input": {"limit": {"$ref": "a.output"}}, "after": ["a"]}
SEND: JsonObject = {"id": "s", "tool": "mail.send", "input": {"to": ["x"], "body": "${b.output}"}}


def begun(*subtasks: Any, head: str = '{"intent":"x",', **more: Any) -> list[str]:
    text = head + '"subtasks":' + json.dumps(subtasks) + "}"
    asked: dict[str, Any] = {"task_id": "t", "prompt": "p", "context": {}, "tools": VIEWS, "may_begin": True}
    reader, size = EarlyReader(PlanRequest(**asked | more)), 5
    found = []
    for at in range(0, len(text), size):
        found += [reader.judged(written) for written in reader.feed(text[at : at + size])]
    given = [each for each in found if each is not None]
    assert reader.given == given
    # As they are in the whole plan.
    whole = {str(each["id"]): each for each in subtasks_of(read_plan(list(subtasks), VIEWS).plan)} if given else {}
    assert all(whole[str(each["id"])] == each for each in given)
    return list(reader.ids)


def test_what_only_reads_begins_and_what_stands_on_it() -> None:
    assert begun(A, B, SEND) == ["a", "b"]
    assert begun(SEND, A, {**B, "id": "c", "after": ["s"]}) == ["a"]


def test_each_begins_with_its_last_brace() -> None:
    reader = EarlyReader(PlanRequest(task_id="t", prompt="p", context={}, tools=VIEWS, may_begin=True))
    assert reader.feed('{"subtasks":[' + json.dumps(A)[:-1]) == ()
    (written,) = reader.feed("}")
    assert reader.judged(written) == {
        "id": "a", "type": "DATA_RETRIEVAL", "tool": "db.get", "input": {"limit": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("head", "count"),
    [
        ('```json\n{"intent":"x",', 1),
        ('<think>{"intent":"x",', 0),
        ('Perhaps: {"intent":"x",', 0),
        ('{"max_tokens":5,', 0),
        ('{"max_cost_usd" : 5,', 0),
        ('{"questions":["Which?"],', 0),
    ],
)
def test_an_answer_that_says_more_first_is_waited_for(head: str, count: int) -> None:
    assert len(begun(A, head=head)) == count


def test_nothing_begins_where_nothing_may() -> None:
    assert begun(A, may_begin=False) == []


@pytest.mark.parametrize(
    "broken",
    [
        {**A, "id": "x", "input": "SELECT"},
        {**A, "id": "x", "input": {"limit": "many"}},
        A | {"id": "x", "input": dict[str, Json](limit=1, of="everything")},
        {**A, "id": "x", "tool": "db.get", "do": "x" * 100_001, "name": "\0"},
    ],
)
def test_after_what_can_not_run_nothing_begins(broken: Any) -> None:
    assert begun(A, broken, {**A, "id": "c"}) == ["a"]


def test_what_could_not_run_on_any_node_does_not_begin() -> None:
    hungry = VIEWS | {"db.get": replace(VIEWS["db.get"], resources={"CPU": 8.0})}
    nodes = (NodeShape(total={"CPU": 4.0}, labels={}, count_max=1),)
    assert begun(A, nodes=nodes) == ["a"]
    assert begun(A, nodes=nodes, tools=hungry) == []


@pytest.mark.parametrize("value", ["{{s.output}}", ["{{s.output}}"], {"x": "{{s.output}}"}])
def test_what_may_mean_a_later_one_waits(value: Any) -> None:
    assert begun({**A, "input": {"rows": [value]}}, {**A, "id": "c", "input": {"rows": ["x", 1]}}) == ["c"]


def test_a_copy_is_left_out() -> None:
    assert begun(A, A) == ["a"]


# -- the whole plan ----------------------------------------------------------------------------------------------------

EARLY_A: JsonObject = {"id": "a", "type": "DATA_RETRIEVAL", "tool": "db.get", "input": {"limit": 1}}
EARLY_B: JsonObject = EARLY_A | {"id": "b", "input": {"limit": {"$ref": "a.output"}}, "depends_on": ["a"]}
LATE: JsonObject = {
    "id": "s",
    "type": "TOOL",
    "tool": "mail.send",
    "input": {"to": ["x"], "body": "${a.output} ${b.output}"},
}


def whole(*subtasks: JsonObject, of: list[JsonObject]) -> tuple[list[JsonObject], tuple[str, ...]]:
    found = joined({"subtasks": list(subtasks)}, of)
    verify(parse_plan(found.plan), tools=VIEWS, nodes=(), done=ids_of(of))
    assert subtasks_of(found.plan)[: len(of)] == of
    assert bool(found.notes) == bool(found.dropped)
    return subtasks_of(found.plan)[len(of) :], found.dropped


def test_a_plan_of_which_nothing_has_begun_is_as_it_is() -> None:
    assert whole(LATE | {"input": {"to": ["x"]}}, of=[]) == ([LATE | {"input": {"to": ["x"]}}], ())


def test_what_has_begun_stands_first_as_it_was_accepted() -> None:
    final_b = {name: value for name, value in EARLY_B.items() if name != "depends_on"} | {"name": "another"}
    assert whole(LATE, final_b, EARLY_A | {"name": "n"}, of=[EARLY_A, EARLY_B]) == ([LATE], ())


def test_what_the_plan_means_otherwise_gets_an_id_of_its_own_and_so_does_what_stands_on_it() -> None:
    other = EARLY_A | {"input": {"limit": 2}}
    added, dropped = whole(other, EARLY_B, LATE, of=[EARLY_A, EARLY_B])
    assert dropped == ("a", "b")
    assert added == [
        other | {"id": "a_2"},
        EARLY_B | {"id": "b_2", "input": {"limit": {"$ref": "a_2.output"}}, "depends_on": ["a_2"]},
        LATE | {"input": {"to": ["x"], "body": "${a_2.output} ${b_2.output}"}},
    ]
    found = joined({"subtasks": [other, EARLY_B, LATE]}, [EARLY_A, EARLY_B])
    assert found.renamed == {"a": "a_2", "b": "b_2"}


def test_what_has_to_wait_for_something_new_is_another_subtask() -> None:
    first: JsonObject = {"id": "w", "type": "TOOL", "tool": "any"}
    added, dropped = whole(first, EARLY_A | {"depends_on": ["w"]}, of=[EARLY_A])
    assert dropped == ("a",)
    assert added == [first, EARLY_A | {"id": "a_2", "depends_on": ["w"]}]


def test_what_the_plan_does_without_is_dropped() -> None:
    bare: JsonObject = {"id": "x", "type": "TOOL", "tool": "any"}
    assert whole(bare, of=[EARLY_A, EARLY_B]) == ([bare], ("a", "b"))
    assert whole(EARLY_A, of=[EARLY_A, EARLY_B]) == ([], ("b",))


def test_no_free_id_is_given_twice() -> None:
    third = EARLY_A | {"id": "a_2", "input": {"limit": 3}}
    added, _ = whole(EARLY_A | {"input": {"limit": 2}}, third, of=[EARLY_A])
    assert list(ids_of(added)) == ["a_3", "a_2"]


def test_a_cycle_is_left_for_verification() -> None:
    found = joined({"subtasks": [EARLY_A | {"depends_on": ["b"]}, EARLY_B]}, [EARLY_A, EARLY_B])
    assert ids_of(subtasks_of(found.plan)) == ("a", "b", "a_2", "b_2")


def test_an_approval_is_wanted_of_what_comes_first_of_the_rest() -> None:
    rest: list[JsonObject] = [LATE, {"id": "t", "type": "TOOL", "tool": "any", "depends_on": ["s"]}]
    plan = held_back({"subtasks": [EARLY_A, EARLY_B, *rest]}, [EARLY_A, EARLY_B])
    verified = verify(parse_plan(plan), tools=VIEWS, nodes=())
    assert [each.needs_approval for each in verified.subtasks] == [False, False, True, False]


def test_what_was_ended_is_done_anew_and_what_is_done_stays() -> None:
    found = joined({"subtasks": [EARLY_A, EARLY_B, LATE]}, [EARLY_A, EARLY_B], lost={"b"})
    assert (found.dropped, dict(found.renamed)) == (("b",), {"b": "b_2"})
    assert ids_of(subtasks_of(found.plan)) == ("a", "b", "b_2", "s")
    assert subtasks_of(found.plan)[-1] == LATE | {"input": {"to": ["x"], "body": "${a.output} ${b_2.output}"}}
    assert found.notes[0].startswith("`b` had begun and was ended before it was done")
