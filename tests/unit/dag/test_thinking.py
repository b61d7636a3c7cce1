"""What an input says for a model beside its data."""

from __future__ import annotations

from rayloom.dag.thinking import REASONING_INPUT, coding_input, data_of, schema_fault
from rayloom.dag.values import JsonObject


def test_all_but_a_few_names_is_data() -> None:
    given: JsonObject = {"use_tools": ["a"], "max_steps": 2, "output_schema": {}, "code": 1, "files": 2}
    assert data_of(given, REASONING_INPUT) == {"code": 1, "files": 2}


def test_code_is_written_with_all_that_running_it_takes() -> None:
    runs = {"$defs": {"F": True}, "required": ["code"], "properties": {"code": {}, "files": {"$ref": "#/$defs/F"}}}
    schema = coding_input(runs)
    assert schema["$defs"] == {"F": True}
    assert "required" not in schema
    assert isinstance(schema["properties"], dict)
    assert sorted(schema["properties"]) == ["files", "max_repairs", "output_schema", "whole_request"]
    assert data_of({"files": 1, "max_repairs": 1, "rows": []}, schema) == {"rows": []}
    assert coding_input({})["type"] == "object"


def test_a_schema_is_looked_at() -> None:
    assert schema_fault({"type": "object"}) is None
    assert schema_fault({"type": 7}) == "is no JSON Schema: 7 is not valid under any of the given schemas"


def test_a_schema_is_bounded_before_it_is_looked_at() -> None:
    assert schema_fault([]) == "is no JSON Schema: it must be an object"
    assert "more than 2,000 parts" in str(schema_fault({"allOf": [{}] * 3_000}))
    assert schema_fault({"$ref": "#"}) is None
