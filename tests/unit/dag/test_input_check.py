"""A schema judges what is there, and leaves open what a reference will bring."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.input_check import InputCheck
from rayloom.dag.values import Json, JsonObject

REF: Json = {"$ref": "a.output.x"}
TEXT = "see ${a.output.x}"


def _faults(schema: dict[str, Any], given: JsonObject) -> list[tuple[str, str]]:
    return [(fault.pointer, fault.message) for fault in InputCheck(schema).faults(given, pointer="/in")]


def _about(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": schema}}


REQUEST = {
    "type": "object",
    "required": ["url"],
    "properties": {
        "url": {"type": "string", "pattern": "^https?://", "maxLength": 30},
        "retries": {"type": "integer", "minimum": 0},
        "headers": {"type": "object", "additionalProperties": {"type": "string"}},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "given",
    [
        {"url": "https://x"},
        {"url": REF, "retries": REF, "headers": REF, "tags": REF},
        {"url": TEXT, "headers": {"a": TEXT, "b": REF}, "tags": [TEXT, REF]},
        {"url": {"$literal": "https://x"}, "headers": {"$literal": {"a": "${b.output}"}}},
        {"url": {"$secret": "s"}},
        {"$ref": "a.output"},
        {"$literal": {"url": "https://x"}},
    ],
)
def test_what_may_turn_out_right_is_not_refused(given: JsonObject) -> None:
    assert _faults(REQUEST, given) == []


@pytest.mark.parametrize(
    ("given", "pointer", "message"),
    [
        ({}, "/in/url", "is missing"),
        ({"retries": REF}, "/in/url", "is missing"),
        ({"url": REF, "retry": 1}, "/in/retry", "is not a field here; did you mean retries?"),
        ({"url": REF, "retries": "x"}, "/in/retries", "is not of type 'integer'"),
        ({"url": REF, "retries": TEXT}, "/in/retries", "is not of type 'integer'"),
        ({"url": REF, "retries": -1}, "/in/retries", "less than the minimum"),
        ({"url": REF, "headers": {"a": REF, "b": 1}}, "/in/headers/b", "is not of type 'string'"),
        ({"url": REF, "tags": [REF, 1]}, "/in/tags/1", "is not of type 'string'"),
        ({"url": REF, "tags": []}, "/in/tags", "non-empty"),
        ({"url": "ftp://x", "tags": [REF]}, "/in/url", "does not match"),
        ({"url": {"$literal": 1}}, "/in/url", "is not of type 'string'"),
        ({"$literal": {"url": 1}}, "/in/url", "is not of type 'string'"),
        ({"url": "$${a.output}"}, "/in/url", "'${a.output}' does not match"),
    ],
)
def test_everything_around_a_reference_is_judged(given: JsonObject, pointer: str, message: str) -> None:
    ((where, said),) = _faults(REQUEST, given)
    assert where == pointer
    assert message in said


_KINDS = {
    "oneOf": [
        {"required": ["kind"], "properties": {"kind": {"const": "a"}, "n": {"type": "integer"}}},
        {"required": ["kind"], "properties": {"kind": {"const": "b"}, "n": {"type": "string"}}},
    ]
}
_IF = {
    "if": {"properties": {"mode": {"const": "json"}}, "required": ["mode"]},
    "then": {"required": ["json"]},
    "else": {"required": ["body"]},
}
_ITEM_1 = {"contains": {"const": 1}}


@pytest.mark.parametrize(
    ("schema", "value", "is_fault"),
    [
        (_KINDS, {"kind": REF, "n": 1}, False),
        (_KINDS, {"kind": REF}, False),
        (_KINDS, {"kind": REF, "n": None}, True),
        (_KINDS, {"kind": "a", "n": 1}, False),
        (_KINDS, {"kind": "a", "n": "1"}, True),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, REF, False),
        ({"anyOf": [{"type": "integer"}, {"type": "array"}]}, TEXT, True),
        ({"anyOf": [{"required": ["q"]}, {"required": ["r"]}]}, {"s": REF}, True),
        ({"allOf": [{"required": ["q"]}]}, {"s": REF}, True),
        ({"not": {"required": ["q"]}}, {"q": 1}, True),
        ({"not": {"properties": {"q": {"const": 1}}}}, {"q": REF}, False),
        ({"enum": [1, 2]}, 3, True),
        ({"enum": [1, 2]}, REF, False),
        ({"enum": ["see"]}, TEXT, False),
        ({"enum": [[1]]}, [REF], False),
        ({"const": {"a": 1}}, {"a": REF}, False),
        ({"const": {"a": 1}}, {"a": 2}, True),
        ({"minLength": 100}, TEXT, False),
        ({"maxLength": 3}, TEXT, False),
        ({"maxLength": 3}, "long", True),
        ({"uniqueItems": True}, [REF, REF], False),
        ({"uniqueItems": True}, [1, 1], True),
        (_IF, {"mode": REF}, False),
        (_IF, {"mode": "json"}, True),
        (_IF, {"mode": "json", "json": REF}, False),
        (_IF, {"other": REF}, True),
        (_ITEM_1, [REF], False),
        ({"contains": {"type": "integer"}}, ["a", TEXT], True),
        (_ITEM_1, [2], True),
        (_ITEM_1, {"a": REF}, False),
        ({**_ITEM_1, "maxContains": 1}, [1, REF], False),
        ({**_ITEM_1, "maxContains": 1}, [1, 1], True),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, {"b": REF}, False),
        ({"properties": {"a": True}, "unevaluatedProperties": False}, {"b": 1}, True),
        ({"patternProperties": {"^x": True}, "additionalProperties": False}, {"y": REF}, True),
        ({"patternProperties": {"^x": True}, "additionalProperties": False}, {"xy": REF}, False),
        ({"additionalProperties": False}, [REF], False),
        ({"required": ["a"]}, [REF], False),
        ({"properties": {"a": False}}, {"a": REF}, True),
        ({"$defs": {"n": {"type": "integer"}}, "prefixItems": [{"type": "integer"}]}, ["x", REF], True),
    ],
)
def test_only_what_is_sure_is_a_fault(schema: dict[str, Any], value: Json, is_fault: bool) -> None:
    assert bool(_faults(_about(schema), {"x": value})) is is_fault


def test_a_schema_may_point_into_itself() -> None:
    tree = {"$defs": {"node": {"properties": {"below": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}}}}}
    schema = {**tree, "$ref": "#/$defs/node"}
    assert _faults(schema, {"below": {"below": {"n": "x"}}})[0][0] == "/in/below/below/n"
    assert _faults(schema, {"below": {"below": REF}}) == []


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/schema.json", "#/$defs/nothing"])
def test_a_schema_that_points_nowhere_is_a_fault_and_nothing_is_fetched(target: str) -> None:
    ((pointer, message),) = _faults({"$ref": target}, {"a": 1})
    assert pointer == "/in"
    assert "schema is unusable" in message


def test_a_schema_that_runs_in_a_circle_is_a_fault() -> None:
    ((_, message),) = _faults({"$ref": "#"}, {"a": 1})
    assert "references lead round in a circle" in message


def test_the_faults_of_one_input_are_bounded() -> None:
    check = InputCheck({"additionalProperties": False})
    assert len(check.faults({f"k{i}": 1 for i in range(50)}, limit=7)) == 7


def test_an_empty_input_is_judged_once_and_told_everywhere() -> None:
    check = InputCheck(REQUEST)
    assert [fault.pointer for fault in check.faults({}, pointer="/a")] == ["/a/url"]
    assert [fault.pointer for fault in check.faults({}, pointer="/b")] == ["/b/url"]


def test_messages_are_short_and_call_a_reference_a_reference() -> None:
    ((_, message),) = _faults(_about({"type": "integer"}), {"x": [REF]})
    assert message == "[<reference>] is not of type 'integer'"
    ((_, message),) = _faults(_about({"type": "integer"}), {"x": "y" * 10_000})
    assert len(message) == 300
