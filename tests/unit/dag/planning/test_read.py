"""From a model's list of subtasks to a plan: what is mended, what is told, what is a fault."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.planning.read import MAX_PLANNED, PlanReader, read_plan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject
from tests.unit.dag.planning.views import VIEWS


def read(*items: Any) -> list[Any]:
    reading = read_plan(list(items), VIEWS)
    assert reading.faults == ()
    subtasks = reading.plan["subtasks"]
    assert isinstance(subtasks, list)
    return subtasks


def test_a_plan_as_it_is_asked_for() -> None:
    reading = read_plan(
        [
            {"id": "page", "tool": "http.fetch_text", "input": {"url": "https://a.example"}, "after": []},
            {"id": "sum", "tool": "think", "do": "Sum it up", "after": ["page"]},
            {"id": "plot", "tool": "code", "do": "Plot it", "after": ["page"]},
            {"id": "send", "tool": "mail.send", "input": {"to": ["a@b.c"], "body": "${sum.output}"}, "after": ["sum"]},
        ],
        VIEWS,
    )
    assert (reading.notes, reading.faults) == ((), ())
    assert reading.places == (0, 1, 2, 3)
    seen = {"page": {"$ref": "page.output"}}
    assert reading.plan["subtasks"] == [
        {"id": "page", "type": "API_CALL", "tool": "http.fetch_text", "input": {"url": "https://a.example"}},
        {"id": "sum", "name": "Sum it up", "type": "REASONING", "instruction": "Sum it up", "input": seen,
         "depends_on": ["page"]},
        {"id": "plot", "name": "Plot it", "type": "CODE_GEN", "instruction": "Plot it", "input": seen,
         "depends_on": ["page"]},
        {"id": "send", "type": "TOOL", "tool": "mail.send", "input": {"to": ["a@b.c"], "body": "${sum.output.text}"},
         "depends_on": ["sum"]},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ({"tool": "python.run", "input": {"code": "1"}}, "CODE_GEN"),
        ({"tool": "db.get"}, "DATA_RETRIEVAL"),
        ({"tool": "weather_api"}, "API_CALL"),
        ({"tool": "Mail_Send"}, "TOOL"),
        ({"type": "REASONING", "instruction": "x"}, "REASONING"),
        ({"do": "x"}, "REASONING"),
        ({"type": "CODE_GEN", "do": "x", "tool": None}, "CODE_GEN"),
        ({"type": "code", "input": {"code": "1"}}, "CODE_GEN"),
        ({"tool": "none", "type": "db.get"}, "DATA_RETRIEVAL"),
        ({"type": "TOOL", "do": "x"}, "TOOL"),
        ({"type": "nonsense", "tool": "null"}, "TOOL"),
        ({}, "TOOL"),
        ({"tool": {"name": "db.get"}}, "DATA_RETRIEVAL"),
        ({"tool": {"call": "db.get"}}, "TOOL"),
    ],
)
def test_the_type_follows_from_the_tool(item: dict[str, Any], kind: str) -> None:
    assert read({"id": "a", **item})[0]["type"] == kind


def test_a_call_brings_its_input() -> None:
    for member in ("input", "arguments"):
        assert read({"id": "a", "tool": {"name": "db.get", member: {"limit": 3}}})[0]["input"] == {"limit": 3}
    both = {"id": "a", "tool": {"name": "db.get", "input": {"limit": 3}}, "input": {"limit": 4}}
    assert read(both)[0]["input"] == {"limit": 4}


def test_the_result_of_a_model_is_passed_alone() -> None:
    found = read(
        {"id": "t", "tool": "think", "do": "x"},
        {"id": "c", "tool": "code", "do": "x"},
        {"id": "p", "tool": "code", "input": {"code": "print(1)"}},
        {"id": "s", "tool": "think", "do": "x", "input": {"output_schema": {"type": "object"}}},
        {"id": "d", "tool": "db.get"},
        {"id": "sum", "tool": "think", "do": "x", "after": ["t", "c", "p", "s", "d"]},
        {"id": "any", "tool": "any", "input": {"a": {"$ref": "t.output"}, "b": "${c.output} ${d.output}", "c": "${t}"}},
        {"id": "own", "tool": "any", "input": {"a": {"$ref": "c.output.stdout"}, "b": {"$ref": "c"}}},
    )
    assert found[5]["input"] == {
        "t": {"$ref": "t.output.text"},
        "c": {"$ref": "c.output.result"},
        "p": {"$ref": "p.output.stdout"},
        "s": {"$ref": "s.output"},
        "d": {"$ref": "d.output"},
    }
    assert found[6]["input"] == {"a": {"$ref": "t.output.text"}, "b": "${c.output.result} ${d.output}", "c": "${t}"}
    assert found[7]["input"] == {"a": {"$ref": "c.output.stdout"}, "b": {"$ref": "c.output.result"}}


def test_what_models_do_is_told_of_the_request() -> None:
    told: JsonObject = {"whole_request": {"$literal": "p"}, "context": {"$literal": {"k": 1}}}
    reading = read_plan(
        [
            {"id": "context", "tool": "db.get"},
            {"id": "a", "tool": "think", "do": "x", "after": ["context"]},
            {"id": "b", "tool": "code", "do": "x", "input": {"of": "${a.output}"}},
        ],
        VIEWS,
        told=told,
    )
    subtasks: Any = reading.plan["subtasks"]
    assert "input" not in subtasks[0]
    # A subtask of that name is what is meant by it.
    assert subtasks[1]["input"] == {"whole_request": {"$literal": "p"}, "context": {"$ref": "context.output"}}
    assert subtasks[2]["input"] == {"whole_request": {"$literal": "p"}, "of": "${a.output.text}"}


def test_ids_are_cleaned_numbered_and_made() -> None:
    reading = read_plan(
        [
            {"id": "my page", "tool": "any"},
            {"id": "my page", "tool": "db.get"},
            {"tool": "any", "after": ["my page"]},
            {"id": 7, "tool": "any", "input": {"x": {"$ref": "my page.output.a"}, "y": "${my page.output}"}},
            {"id": "获取", "tool": "any", "after": "7"},
            {"id": True, "tool": "think", "name": "Look", "after": ["获取", {"id": "my page"}, None, 3.5]},
        ],
        VIEWS,
    )
    subtasks: Any = reading.plan["subtasks"]
    assert [each["id"] for each in subtasks] == ["my_page", "my_page_2", "s3", "7", "s5", "s6"]
    assert [each.get("depends_on") for each in subtasks] == [None, None, ["my_page"], None, ["7"], ["s5", "my_page"]]
    assert subtasks[3]["input"] == {"x": {"$ref": "my_page.output.a"}, "y": "${my_page.output}"}
    assert subtasks[5]["instruction"] == "Look"
    assert len(reading.notes) >= 5


def test_a_copy_is_left_out_and_places_stay_those_of_the_model() -> None:
    item: JsonObject = {"id": "a", "tool": "any"}
    reading = read_plan([item, dict(item), {"id": "b", "tool": "any"}], VIEWS)
    assert reading.places == (0, 2)
    assert "twice" in reading.notes[0]


def test_dependencies_that_are_near_or_later_are_found() -> None:
    first, second, third = read(
        {"id": "first", "tool": "any", "after": ["frist", "first", "none", "", "third", "third"]},
        {"id": "second", "tool": "any", "needs": ["firs", "unknown"]},
        {"id": "third", "tool": "any"},
    )
    assert first["depends_on"] == ["frist", "third"]
    assert second["depends_on"] == ["first", "unknown"]
    assert "depends_on" not in third


def test_one_by_one_it_gives_what_it_will_give_at_the_end() -> None:
    items: list[Json] = [
        {"id": "a", "tool": "any"},
        {"id": "b", "do": "x", "after": ["a"]},
        "nothing",
        {"id": "c", "tool": "any", "after": ["b"], "require_approval": True, "input": "{}"},
    ]
    reader = PlanReader(VIEWS)
    given = [subtask for subtask in map(reader.add, items) if subtask is not None]
    whole = reader.finish()
    assert whole.plan["subtasks"] == given
    assert given[-1]["require_approval"] is True
    assert [fault.pointer for fault in whole.faults] == ["/subtasks/2"]


def test_what_a_model_names_itself_it_sees_and_nothing_else() -> None:
    _, both, code = read(
        {"id": "a", "tool": "any"},
        {"id": "b", "do": "x", "input": {"only": {"$ref": "a.output.x"}}, "after": ["a"]},
        {"id": "c", "tool": "code", "input": {"code": "print(1)"}, "after": ["a"]},
    )
    assert both["input"] == {"only": {"$ref": "a.output.x"}}
    assert code["input"] == {"code": "print(1)"}
    assert "instruction" not in code


def test_what_a_model_does_not_set_is_left_out_and_told() -> None:
    reading = read_plan([{"id": "a", "tool": "any", "resources": {"num_gpus": 8}, "retries": 9, "note": None}], VIEWS)
    assert reading.plan["subtasks"] == [{"id": "a", "type": "DATA_RETRIEVAL", "tool": "any"}]
    assert "`resources`, `retries`" in reading.notes[0]


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        (None, "/subtasks"),
        ([], "/subtasks"),
        ({"a": 1}, "/subtasks"),
        ([{"id": "a", "tool": "any"}] * (MAX_PLANNED + 1), "/subtasks"),
        ([1], "/subtasks/0"),
        ([{"id": "a", "tool": "any", "input": "text"}], "/subtasks/0/input"),
        ([{"id": "a", "tool": "any", "input": [1]}], "/subtasks/0/input"),
        ([{"id": "a", "tool": "any", "input": '{"a":' * 70 + "1" + "}" * 70}], "/subtasks/0/input" + "/a" * 64),
        ([{"id": "a", "tool": "any", "input": '{"a":' * 900 + "1" + "}" * 900}], "/subtasks/0/input" + "/a" * 64),
        ([{"id": "a", "tool": "any", "input": '{"a":' * 20_000 + "1" + "}" * 20_000}], "/subtasks/0/input"),
    ],
)
def test_what_can_not_be_read_is_a_fault(raw: Any, pointer: str) -> None:
    assert [fault.pointer for fault in read_plan(raw, VIEWS).faults] == [pointer]


@pytest.mark.parametrize(
    ("tool", "given", "mended"),
    [
        ("db.get", {"limit": "5"}, {"limit": 5}),
        ("db.get", {"limit": "5.5"}, {"limit": "5.5"}),
        ("db.get", {"share": "0.5"}, {"share": 0.5}),
        ("db.get", {"limit": "five"}, {"limit": "five"}),
        ("db.get", {"limit": "${a.output.n}"}, {"limit": {"$ref": "a.output.n"}}),
        ("db.get", {"limit": "${b.output.n}"}, {"limit": "${b.output.n}"}),
        ("db.get", {"LIMIT": 5}, {"limit": 5}),
        ("db.get", {"LIMIT": 5, "limit": 6}, {"LIMIT": 5, "limit": 6}),
        ("db.get", {"rows": "x"}, {"rows": ["x"]}),
        ("db.get", {"rows": {"$ref": "a"}}, {"rows": {"$ref": "a.output"}}),
        ("db.get", {"rows": {"x": 1}}, {"rows": {"x": 1}}),
        ("mail.send", {"to": "a@b.c"}, {"to": ["a@b.c"]}),
        ("mail.send", {"to": None, "urgent": "True"}, {"to": None, "urgent": True}),
        ("mail.send", {"body": 5}, {"body": "5"}),
        ("mail.send", {"body": True, "urgent": "maybe"}, {"body": True, "urgent": "maybe"}),
        (
            "mail.send",
            {"body": "{{ a.output.x }} {{ name }} {{ $a.output }}"},
            {"body": "${a.output.x} {{ name }} ${a.output}"},
        ),
        ("mail.send", {"body": "$${a.output} ${HOME} ${a.output}"}, {"body": "$${a.output} ${HOME} ${a.output}"}),
        (
            "any",
            {"x": [{"$ref": "#/a/output/x"}, {"$ref": "${a.output}"}]},
            {"x": [{"$ref": "a.output.x"}, {"$ref": "a.output"}]},
        ),
        (
            "any",
            {"x": {"$ref": "a.name"}, "y": {"$ref": "a[0]"}},
            {"x": {"$ref": "a.output.name"}, "y": {"$ref": "a.output[0]"}},
        ),
        ("any", {"x": {"$ref": "nobody"}, "y": {"$ref": 5}}, {"x": {"$ref": "nobody"}, "y": {"$ref": 5}}),
        (
            "any",
            {"x": {"$literal": {"$ref": "a"}}, "y": {"$secret": "s"}},
            {"x": {"$literal": {"$ref": "a"}}, "y": {"$secret": "s"}},
        ),
        ("any", {"x": {"$ref": "a", "y": 1}}, {"x": {"$ref": "a", "y": 1}}),
        ("any", {"x": {"y": {"$ref": "ab"}}}, {"x": {"y": {"$ref": "ab"}}}),
    ],
)
def test_inputs_are_mended_where_they_can_mean_one_thing_only(
    tool: str, given: dict[str, Any], mended: dict[str, Any]
) -> None:
    assert read({"id": "a", "tool": "any"}, {"id": "z", "tool": tool, "input": given})[1]["input"] == mended


def test_schemas_that_say_nothing_are_no_hindrance() -> None:
    schemas: dict[str, Any] = {
        "odd": {"properties": ["x"]},
        "kinds": {"properties": {"x": {"type": ["integer", 5, "null"]}, "y": {"type": 5}, "z": True}},
        "objects": {"properties": {"x": {"type": "array", "items": {"type": "object"}}}},
        "either": {"properties": {"x": {"type": ["string", "integer"]}}},
    }
    views = {name: ToolView(name=name, schema=schema, resources={}) for name, schema in schemas.items()}
    given: list[Any] = [
        {"id": "a", "tool": "odd", "input": {"x": "1"}},
        {"id": "b", "tool": "kinds", "input": {"x": "1", "y": "1", "z": "1"}},
        {"id": "c", "tool": "objects", "input": {"x": {"k": 1}}},
        {"id": "d", "tool": "either", "input": {"x": 1}},
    ]
    subtasks: Any = read_plan(given, views).plan["subtasks"]
    assert [each["input"] for each in subtasks] == [
        {"x": "1"}, {"x": 1, "y": "1", "z": "1"}, {"x": [{"k": 1}]}, {"x": 1},
    ]  # fmt: skip


def test_a_program_without_code_is_written_by_a_model() -> None:
    raw: JsonObject = {"id": "a", "tool": "python.run", "input": {"packages": ["x"]}, "do": "Count to three"}
    (subtask,) = read(raw)
    assert subtask == {
        "id": "a", "name": "Count to three", "type": "CODE_GEN", "instruction": "Count to three",
        "input": {"packages": ["x"]},
    }  # fmt: skip
    assert read_plan([raw], VIEWS).notes == ("`a` calls `python.run` without code: a model writes it",)


def test_what_stands_within_the_input_by_mistake_is_taken_out() -> None:
    reading = read_plan(
        [
            {
                "id": "a",
                "tool": "http.fetch_text",
                "input": {"url": "https://a.example", "after": [], "do": "x"},
                "do": "",
            },
            {"id": "b", "tool": "think", "input": {"do": "Sum it up", "after": ["a"]}, "do": "", "after": []},
            {"id": "c", "tool": "any", "input": {"do": "mine"}, "do": "said", "after": ["b"]},
            {"id": "d", "tool": 7, "input": "text"},
        ],
        VIEWS,
    )
    subtasks = reading.plan["subtasks"]
    assert isinstance(subtasks, list)
    a, b, c = subtasks[:3]
    assert isinstance(a, dict)
    assert a["input"] == {"url": "https://a.example"}
    assert isinstance(b, dict)
    assert (b["instruction"], b["depends_on"]) == ("Sum it up", ["a"])
    assert isinstance(c, dict)
    assert c["input"] == {"do": "mine"}
    assert "/subtasks/1: `do` stood within `input`" in reading.notes
