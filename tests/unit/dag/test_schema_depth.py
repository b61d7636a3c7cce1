"""A check that would go too deep is given up in time, whatever keywords lead there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jsonschema.validators import extend

from rayloom.dag.input_check import InputCheck
from rayloom.dag.schema_depth import BoundedValidator, TooDeep, errors_of
from rayloom.dag.values import Json

_ROOT: dict[str, Any] = {"$ref": "#"}
_OBJECTS: dict[str, dict[str, Any]] = {
    "properties": {"properties": {"c": _ROOT}},
    "patternProperties": {"patternProperties": {"^c": _ROOT}},
    "additionalProperties": {"additionalProperties": _ROOT},
    "unevaluatedProperties": {"unevaluatedProperties": _ROOT},
    "allOf": {"properties": {"c": {"allOf": [{"allOf": [_ROOT]}]}}},
    "anyOf": {"properties": {"c": {"anyOf": [{"anyOf": [_ROOT]}]}}},
    "oneOf": {"properties": {"c": {"oneOf": [_ROOT]}}},
    "oneOf of several": {"properties": {"c": {"oneOf": [{"required": ["c"]}, {"not": {"not": _ROOT}}]}}},
    "not": {"properties": {"c": {"not": {"not": _ROOT}}}},
    "if": {"properties": {"c": {"if": {"if": _ROOT}}}},
    "then": {"properties": {"c": {"if": True, "then": _ROOT}}},
    "dependentSchemas": {"dependentSchemas": {"c": {"properties": {"c": _ROOT}}}},
    "$dynamicRef": {"$dynamicAnchor": "n", "properties": {"c": {"$dynamicRef": "#n"}}},
    "all of them": {
        "properties": {"c": {"allOf": [{"anyOf": [{"oneOf": [{"$ref": "#/$defs/a"}]}]}]}},
        "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [_ROOT]}},
    },
}
_LISTS: dict[str, dict[str, Any]] = {
    "items": {"items": _ROOT},
    "prefixItems": {"prefixItems": [_ROOT]},
    "contains": {"contains": _ROOT},
    "unevaluatedItems": {"unevaluatedItems": _ROOT},
}


def _objects(levels: int, innermost: Json) -> Json:
    value = innermost
    for _ in range(levels):
        value = {"c": value}
    return value


def _lists(levels: int, innermost: Json) -> Json:
    value = innermost
    for _ in range(levels):
        value = [value]
    return value


_KINDS = [
    *(pytest.param(schema, _objects, id=name) for name, schema in _OBJECTS.items()),
    *(pytest.param(schema, _lists, id=name) for name, schema in _LISTS.items()),
]
_Nested = Callable[[int, Json], Json]


@pytest.mark.parametrize(("schema", "nested"), _KINDS)
def test_it_is_given_up_before_python_breaks_it_off(schema: dict[str, Any], nested: _Nested) -> None:
    assert list(errors_of(BoundedValidator(schema), nested(5, {}))) == []
    with pytest.raises(TooDeep) as error:
        list(errors_of(BoundedValidator(schema), nested(800, {})))
    assert error.value.__cause__ is None


@pytest.mark.parametrize("name", ["properties", "additionalProperties", "anyOf", "oneOf", "all of them"])
@pytest.mark.parametrize("beside", [{}, {"b": {"$ref": "a.output"}}], ids=["whole", "with a reference"])
def test_no_input_is_taken_that_can_not_be_checked(name: str, beside: dict[str, Json]) -> None:
    check = InputCheck({**_OBJECTS[name], "type": "object"})
    told = [check.faults({**beside, "c": _objects(levels, 1)}, pointer="/in") for levels in range(1, 450, 80)]
    assert all(told)
    assert [fault.pointer for fault in told[-1]] == ["/in"]
    assert "nest too deeply together" in told[-1][0].message


def test_what_is_not_so_deep_is_taken() -> None:
    check = InputCheck(_OBJECTS["properties"])
    assert check.faults({"c": _objects(63, {"c": {"$ref": "a.output"}})}) == []


_TREES: dict[str, dict[str, Any]] = {
    "a tree": {"properties": {"c": {"$ref": "#/$defs/node"}}, "required": ["kind"]},
    "a tree or nothing": {"properties": {"c": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}},
    "one of several": {
        "properties": {"c": {"oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}, {"type": "null"}]}}
    },
    "by its kind": {
        "allOf": [
            {"if": {"properties": {"kind": {"const": "leaf"}}}, "then": {"$ref": "#/$defs/leaf"}},
            {
                "if": {"properties": {"kind": {"const": "node"}}},
                "then": {"properties": {"c": {"oneOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}},
            },
        ]
    },
}


@pytest.mark.parametrize("name", _TREES)
def test_a_schema_of_a_tree_is_checked_as_deep_as_values_may_be(name: str) -> None:
    """Also far down in a call, as of a worker under an event loop."""
    leaf = {"type": "object", "properties": {"kind": {"const": "leaf"}, "c": False}}
    schema = {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", **_TREES[name]}, "leaf": leaf}}

    def errors(frames: int, innermost: Json) -> list[str]:
        if frames:
            return errors(frames - 1, innermost)
        value = innermost
        for _ in range(63):
            value = {"kind": "node", "c": value}
        return [error.message for error in errors_of(BoundedValidator(schema), value)]

    assert errors(130, {"kind": "node"}) == []
    assert errors(130, {"kind": "node", "c": 1}) != []


def test_what_python_breaks_off_all_the_same_is_given_up_too() -> None:
    # Here the recursion is none of keywords.
    with pytest.raises(TooDeep):
        list(errors_of(BoundedValidator({"unevaluatedProperties": False, "$ref": "#"}), {"a": 1}))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RecursionError(), TooDeep),
        (type("PanicException", (BaseException,), {})("overflow"), TooDeep),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_panic_of_native_code_is_told_from_other_ends(error: BaseException, told: type[BaseException]) -> None:
    def broken(*_: object) -> None:
        raise error

    validator = extend(BoundedValidator, {"type": broken})  # type: ignore[no-untyped-call]
    with pytest.raises(told):
        list(errors_of(validator({"type": "object"}), {}))


def test_there_is_room_again_after_a_check_that_was_left_early() -> None:
    validator = BoundedValidator({"not": {"properties": {"c": {"properties": {"c": False}}}}})
    for _ in range(2_000):
        assert list(errors_of(validator, _objects(3, {}))) == []
