"""Somebody's schema is bounded, whatever it refers to, and holds nothing that takes for ever."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rayloom.dag.tame_schema import MAX_VALUES, tamed


def test_references_are_put_in_and_patterns_left_out() -> None:
    schema = {
        "$defs": {"name": {"type": "string", "pattern": "^(a+)+$"}, "odd/name": {"const": {"pattern": 1}}},
        "type": "object",
        "properties": {"pattern": {"$ref": "#/$defs/name", "maxLength": 5}, "b": {"$ref": "#/$defs/odd~1name"}},
    }
    assert tamed(schema) == {
        "type": "object",
        "properties": {"pattern": {"maxLength": 5, "allOf": [{"type": "string"}]}, "b": {"const": {"pattern": 1}}},
    }


def test_what_refers_to_itself_may_be_anything_from_there_on() -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
    }
    found = tamed(tree)
    Draft202012Validator.check_schema(found)
    assert Draft202012Validator(found).is_valid({"left": {"left": {"left": 5}}})
    assert not Draft202012Validator(found).is_valid({"left": 5})
    assert tamed({"$ref": "#"}) == {}


DIGITS = {"type": "string", "pattern": "^[0-9]+$"}
LETTERS = {"type": "string", "pattern": "^[a-z]+$"}
LOOP = {"$defs": {"loop": {"properties": {"a": {"$ref": "#/$defs/loop"}, "b": {"type": "null"}}}}}


@pytest.mark.parametrize(
    ("schema", "value", "too_much"),
    [
        ({"not": DIGITS, "type": "string"}, "abc", 5),
        ({"not": {"not": DIGITS}}, "12", None),
        ({"oneOf": [DIGITS, LETTERS]}, "abc", 5),
        ({"oneOf": [DIGITS, LETTERS], "allOf": [{"maxLength": 3}], "anyOf": [{"minLength": 2}]}, "abc", "abcd"),
        ({"if": DIGITS, "then": {"maxLength": 1}, "else": {"minLength": 3}, "type": "string"}, "abc", 5),
        ({"contains": DIGITS, "maxContains": 1}, ["a", "1"], [5]),
        ({"patternProperties": {"^x-": True}, "additionalProperties": False, "type": "object"}, {"x-a": 1}, 5),
        ({"allOf": [{"patternProperties": {"^x-": True}}], "unevaluatedProperties": False}, {"x-a": 1}, None),
        (LOOP | {"not": {"$ref": "#/$defs/loop"}, "type": "object"}, {"a": {"a": {"b": 1}}}, 5),
        ({"propertyNames": DIGITS, "maxProperties": 1}, {"1": 1}, {"1": 1, "2": 2}),
    ],
)
def test_what_fits_a_schema_fits_what_is_made_of_it(schema: dict[str, Any], value: Any, too_much: Any) -> None:
    assert Draft202012Validator(schema).is_valid(value)
    found = Draft202012Validator(tamed(schema))
    assert found.is_valid(value)
    # And it still keeps out what no pattern did.
    if too_much is not None:
        assert not found.is_valid(too_much)


def test_what_nothing_was_left_out_of_is_kept_as_it_is() -> None:
    schema = {
        "not": {"type": "null"},
        "oneOf": [{"type": "object"}, {"maxItems": 1, "contains": {"const": 1}, "maxContains": 1}],
        "if": {"required": ["a"]},
        "then": {"required": ["b"]},
        "unevaluatedProperties": False,
        "properties": {"a": {}, "b": {}},
        "dependencies": {"pattern": ["a"]},
    }
    assert tamed(schema) == schema


@pytest.mark.parametrize(
    ("reference", "schema"),
    [
        ("#/$defs/a%20b", {"$defs": {"a b": {"const": 1}}}),
        ("#/$defs/a%25b%7E0~1", {"$defs": {"a%b~/": {"const": 1}}}),
        ("#/anyOf/1", {"anyOf": [{}, {"const": 1}]}),
        ("#/$defs/a/prefixItems/0", {"$defs": {"a": {"prefixItems": [{"const": 1}]}}}),
    ],
)
def test_references_are_fragments_of_uris(reference: str, schema: dict[str, Any]) -> None:
    found = Draft202012Validator(tamed({**schema, "properties": {"x": {"$ref": reference}}}))
    assert found.is_valid({"x": 1})
    assert not found.is_valid({"x": 2})


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://a.example/schema"}, "only references within the schema itself"),
        ({"$ref": "#/$defs/none"}, "which is not there"),
        ({"$ref": "#/type/x", "type": "object"}, "which is not there"),
        ({"$ref": "#name", "$defs": {"a": {"$anchor": "name"}}}, "which is not there"),
        ({"$ref": "#/allOf/01", "allOf": [{}, {}]}, "which is not there"),
        ({"$ref": "#/allOf/2", "allOf": [{}, {}]}, "which is not there"),
        ({"$ref": "#/allOf/-", "allOf": [{}, {}]}, "which is not there"),
        ({"enum": [], "allOf": [{"type": "null"}] * MAX_VALUES}, "more than 2,000 parts"),
        ({"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(4_000)}, "$ref": "#/$defs/d0"}, "too deep"),
    ],
)
def test_what_can_not_be_bounded_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tamed(schema)
