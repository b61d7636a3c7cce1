"""What a small model is told, and what it is held to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rayloom.dag.planning.small import MAX_STEPS, kind_of, small_messages, small_schema
from rayloom.dag.tool_view import ToolView
from tests.unit.dag.planning.views import VIEWS, view

FILES = ToolView(
    name="files.write",
    schema={
        "properties": {
            "path": {"type": "string"},
            "content": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "base64": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "mode": {"enum": ["new", "over"]},
        },
        "required": ["path"],
        "oneOf": [{"required": ["content"]}, {"required": ["base64"]}],
    },
    resources={},
)


def validator(*tools: ToolView, with_code: bool = True) -> Draft202012Validator:
    schema = small_schema(tools, with_code=with_code)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def step(number: int, after: list[str], tool: Any = "think") -> dict[str, Any]:
    return {"id": f"s{number}", "do": "x", "after": after, "tool": tool}


def plan(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"intent": "x", "subtasks": list(steps)}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_example_fits_the_schema(language: str) -> None:
    system, user = small_messages("Do it", [FILES], context={"a": 1}, language=language, with_code=True)
    example = json.loads(system.text.splitlines()[-1])
    mail = view("mail.send", {"to": {"type": "string"}, "body": {"type": "string"}}, "to", "body")
    assert validator(mail).is_valid(example)
    assert user.text.startswith("TOOLS\nfiles.write{path: string, content?: string, ")
    assert user.text.endswith("CONTEXT\na: 1\n\nREQUEST\nDo it")
    # A small model on two cores reads some twenty tokens a second, and four characters are about one.
    assert len(system.text) < 2_300


def test_without_code_nothing_is_said_of_it() -> None:
    system, user = small_messages("x", [], context={}, language="en", with_code=False)
    assert "code" not in system.text
    assert user.text == "REQUEST\nx"
    assert not validator(with_code=False).is_valid(plan(step(1, [], "code")))


def test_steps_are_numbered_and_come_after_earlier_ones_alone() -> None:
    fits = validator().is_valid
    assert fits(plan(step(1, []), step(2, ["s1"]), step(3, ["s1", "s2"])))
    assert fits(plan(*(step(number, []) for number in range(1, MAX_STEPS + 1))))
    assert not fits(plan(*(step(number, []) for number in range(1, MAX_STEPS + 2))))
    assert not fits(plan(step(1, ["s1"])))
    assert not fits(plan(step(1, []), step(2, ["s3"]), step(3, [])))
    assert not fits(plan(step(2, [])))
    assert not fits(plan())
    assert fits({"intent": "x", "questions": ["which?"], "subtasks": []})


def test_what_is_added_to_a_plan_is_numbered_on() -> None:
    schema = small_schema([], with_code=True, before=["s1", "s2", "answer"], done=["s1", "answer"])
    fits = Draft202012Validator(schema).is_valid
    assert fits(plan(step(3, ["s1", "answer"]), step(4, ["s3"])))
    assert not fits(plan(step(1, [])))
    assert not fits(plan(step(3, ["s2"])))
    # Nothing may help.
    assert fits(plan())


def test_each_tool_has_its_own_input() -> None:
    def fits(tool: str, given: dict[str, Any]) -> bool:
        call = {"name": tool, "input": given}
        return validator(FILES, VIEWS["db.get"], VIEWS["any"]).is_valid(plan(step(1, [], call)))

    assert fits("files.write", {"path": "a", "content": "${s1.output}"})
    # Of two ways the first.
    assert not fits("files.write", {"path": "a", "base64": "x"})
    assert not fits("files.write", {"path": "a"})
    assert fits("files.write", {"path": "a", "content": "x", "mode": "new"})
    assert not fits("files.write", {"path": "a", "content": "x", "mode": "old"})
    assert fits("db.get", {})
    assert fits("db.get", {"limit": {"$ref": "s1.output.n"}, "rows": [1, "x"]})
    assert not fits("db.get", {"limit": "5"})
    assert fits("any", {"whatever": 1})
    assert not fits("mail.send", {})


def test_the_type_of_a_value() -> None:
    kinds: list[tuple[Any, str | None]] = [
        ({"type": "string"}, "string"),
        ({"type": ["string", "null"]}, "string"),
        ({"type": ["string", "integer"]}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer"),
        ({}, None),
        (True, None),
    ]
    for schema, kind in kinds:
        assert kind_of(schema) == kind


def test_odd_schemas_of_tools_are_taken() -> None:
    odd = ToolView(name="odd", schema={"properties": {"a": True}, "required": "a", "oneOf": [True]}, resources={})
    assert validator(odd).is_valid(plan(step(1, [], {"name": "odd", "input": {"a": [1]}})))
