"""The tools that a request brings along."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.input_check import InputCheck
from rayloom.serve.given_tools import MAX_TOOLS, read_tools
from rayloom.serve.problems import Problem


def tool(schema: Any, name: str = "t") -> dict[str, Any]:
    return {"name": name, "description": "d", "schema": schema}


def pointers(raw: list[Any]) -> list[str]:
    with pytest.raises(Problem) as refused:
        read_tools(raw)
    assert refused.value.status == 422
    return [fault.pointer for fault in refused.value.errors]


def test_tools_are_taken_with_their_references_put_in_and_without_patterns() -> None:
    schema = {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "pattern": "(a+)+$"},
            "n": {"$ref": "#/$defs/count"},
            "tree": {"$ref": "#/$defs/tree"},
            "e": {"enum": [{"$ref": "x"}]},
        },
        "$defs": {
            "count": {"type": "integer"},
            "tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/tree"}}},
        },
    }
    view = read_tools([tool(schema)])["t"]
    check = InputCheck(view.schema)
    assert check.faults({"pattern": "a" * 50 + "b", "n": 1, "tree": {"left": {"left": 1}}}) == []
    assert [fault.pointer for fault in check.faults({"pattern": 1, "n": "1", "tree": {"left": {}}})] == [
        "/pattern",
        "/n",
    ]
    assert (view.description, view.permission_level) == ("d", "read")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([1], ["/tools/0"]),
        ([tool({}), tool({})], ["/tools/1/name"]),
        ([{**tool({}), "extra": 1}], ["/tools/0/extra"]),
        ([{"name": "", "schema": []}], ["/tools/0/name", "/tools/0/schema"]),
        ([{"name": "a b", "description": 1, "schema": {}}], ["/tools/0/name", "/tools/0/description"]),
        ([tool({"type": "nonsense"})], ["/tools/0/schema/type"]),
        ([tool({"$ref": "https://a.example/x"})], ["/tools/0/schema"]),
        ([tool({"$ref": "#/$defs/x"})], ["/tools/0/schema"]),
        ([tool({})] * (MAX_TOOLS + 1), ["/tools"]),
    ],
)
def test_what_is_wrong_with_them_has_its_place(raw: list[Any], expected: list[str]) -> None:
    assert pointers(raw) == expected


def test_references_that_multiply_are_refused() -> None:
    levels = {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(40)}
    schema = {"$defs": {**levels, "l40": {}}, "$ref": "#/$defs/l0"}
    assert pointers([tool(schema)]) == ["/tools/0/schema"]


def test_faults_are_bounded() -> None:
    assert len(pointers([1] * 500)) == 100
