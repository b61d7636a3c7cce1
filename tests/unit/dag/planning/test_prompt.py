"""What a model is told, and held to."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from rayloom.dag.planning.answer import find_answer
from rayloom.dag.planning.prompt import begun_message, context_text, plan_messages, signature
from rayloom.dag.planning.read import MAX_PLANNED
from rayloom.dag.planning.schema import plan_schema
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from tests.unit.dag.planning.views import VIEWS


def named(name: str) -> ToolView:
    return ToolView(name=name, schema={}, resources={})


def test_a_tool_is_one_line() -> None:
    tool = ToolView(
        name="t",
        schema={
            "required": ["b"],
            "properties": {
                "a": {"enum": ["x", "y"]},
                "b": {"type": "array", "items": {"type": "string"}},
                "c": True,
                "d": {
                    "type": "object",
                    "properties": {"e": {"type": ["string", "null"]}, "f": {"properties": {"g": {}}}},
                },
                "h": {"type": "array"},
                "i": {"type": "object"},
                "j": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                **{f"m{i}": {} for i in range(9)},
            },
        },
        resources={},
        description="long " * 99,
        output_schema={"properties": {"n": {"type": "integer"}}, "required": "nonsense"},
    )
    line = signature(tool)
    assert line.startswith("t{b: [string], a?: x|y, c?: any, d?: {e?: string|null, f?: any}, h?: [any], i?: {}, ")
    assert ", j?: string, " in line
    assert "…} -> {n?: integer}: long" in line
    assert line.endswith("…")
    assert signature(ToolView(name="u", schema={}, resources={})) == "uany"


def test_the_context_is_cut_and_all_its_members_named() -> None:
    text = context_text({"a": "x" * 999, "b": {"c": "你好"}})
    assert text.splitlines()[1] == 'b: {"c": "你好"}'
    assert "(1,001 characters)" in text
    assert len(context_text({f"k{i}": "x" * 400 for i in range(99)})) <= 4_000


def test_the_example_is_of_the_language_of_the_request_and_fits_the_schema() -> None:
    validator = Draft202012Validator(plan_schema([named("weather.get"), named("mail.send")], with_code=True))
    for language, word in (("en", "Compare the weather"), ("zh", "查一下"), ("und", "Compare the weather")):
        system, user = plan_messages("Do it", [VIEWS["any"]], context={}, language=language, with_code=True)
        example = system.text.splitlines()[-1]
        assert word in system.text
        assert find_answer(example).fault is None
        assert list(validator.iter_errors(json.loads(example))) == []
        assert user.text == "TOOLS\nanyany\n\nREQUEST\nDo it"


def test_code_is_offered_only_where_it_may_run() -> None:
    with_code = plan_messages("x", [], context={"a": 1}, language="en", with_code=True)
    without = plan_messages("x", [], context={}, language="en", with_code=False)
    assert '"code"' in with_code[0].text
    assert "code" not in without[0].text
    assert "CONTEXT\na: 1" in with_code[1].text
    assert "(none)" in without[1].text
    tools: Any = plan_schema([named("t")], with_code=False)
    assert tools["properties"]["subtasks"]["items"]["properties"]["tool"]["enum"] == ["t", "think"]


def test_what_runs_already_is_shown_as_a_model_writes_it() -> None:
    read: JsonObject = {"id": "a", "type": "TOOL", "tool": "t", "name": "of no use"}
    more: JsonObject = {**read, "id": "b", "input": {"x": "的"}, "depends_on": ["a"]}
    told = begun_message([read, more]).text.splitlines()[-1]
    assert (
        told == '[{"id":"a","tool":"t","input":{},"after":[]},{"id":"b","tool":"t","input":{"x":"的"},"after":["a"]}]'
    )


def test_what_is_told_is_short() -> None:
    # A small model on two cores reads some ten tokens a second, and four characters are about one.
    system, _ = plan_messages("x", [], context={}, language="en", with_code=True)
    assert len(system.text) < 2_800


def test_everything_in_the_schema_is_bounded() -> None:
    schema: Any = plan_schema([named("t")], with_code=True)
    assert schema["properties"]["subtasks"]["maxItems"] == MAX_PLANNED
    subtask = schema["properties"]["subtasks"]["items"]["properties"]
    assert subtask["do"]["maxLength"]
    assert subtask["after"]["maxItems"]
