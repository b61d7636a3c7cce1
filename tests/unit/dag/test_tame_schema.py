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


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://a.example/schema"}, "only references within the schema itself"),
        ({"$ref": "#/$defs/none"}, "which is not there"),
        ({"$ref": "#/type/x", "type": "object"}, "which is not there"),
        ({"enum": [], "allOf": [{"type": "null"}] * MAX_VALUES}, "more than 2,000 parts"),
        ({"$defs": {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(1_500)}, "$ref": "#/$defs/d0"}, "too deep"),
    ],
)
def test_what_can_not_be_bounded_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tamed(schema)
