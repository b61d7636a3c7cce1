"""The JSON in an answer: where it is looked for, and what is held against it."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.errors import AnswerInvalid, UserError
from rayloom.tools.models.structure import check_schema, structured

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1}',
        ' \n{"n": 1}\n',
        'Here it is:\n```json\n{"n": 1}\n```\nAnything else?',
        '```\n{"n": 1}\n```',
        'The answer is {"n": 1}, I think.',
        'Of [1] and {"m": 2} take {"n": 1}.',
        '<think>Maybe {"n": 2}?</think>{"n": 1}',
        'or {"n": 3}</think>\n```json\n{"n": 1}\n```',
        '```json\n{"n": "one"}\n```\nNo, rather:\n```json\n{"n": 1}\n```',
    ],
    ids=["bare", "blanks", "fenced", "nameless", "words", "several", "thought", "half-thought", "second"],
)
def test_it_is_found(text: str) -> None:
    assert structured(text, SCHEMA) == {"n": 1}


def test_any_json_may_be_an_answer() -> None:
    assert structured("[1, 2]", {"type": "array"}) == [1, 2]
    assert structured(' "[x]" ', {"type": "string"}) == "[x]"
    assert structured("null", {}) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "/: Expecting value at line 1, column 1"),
        ("no", "/: Expecting value at line 1, column 1"),
        ('{"n": NaN}', "/: NaN is not JSON"),
        ('{"n": 1e999}', "/n: is not a finite number"),
        ('{"n": 99999999999999999999}', "/n: is an integer beyond 64 bits"),
        ('{"n": ' + "9" * 5_000 + "}", "/: Exceeds the limit"),
        ('{"n": "1"}', "/n: '1' is not of type 'integer'"),
        ('{"x": [{"n": 2}]}', "/: 'n' is a required property"),
        ("{" * 100_000, "/: Expecting property name"),
    ],
    ids=["empty", "word", "nan", "infinite", "large", "huge", "type", "longest", "braces"],
)
def test_what_is_wrong_is_told(text: str, fault: str) -> None:
    with pytest.raises(AnswerInvalid) as error:
        structured(text, SCHEMA)
    assert error.value.text == text
    assert error.value.faults[0].startswith(fault)


@pytest.mark.parametrize("piece", ["a```\n", "```\n", "{", '{"a": ', "[1] ", '"', "</think>"])
def test_what_is_meant_to_take_long_does_not(piece: str) -> None:
    with pytest.raises(AnswerInvalid):
        structured(piece * (256 * 1024 // len(piece)), SCHEMA)


def test_too_deep_is_a_fault() -> None:
    with pytest.raises(AnswerInvalid) as error:
        structured("[" * 100 + "]" * 100, {})
    assert "deeper than 64" in error.value.faults[0]


@pytest.mark.parametrize("schema", [{"type": "cat"}, {"$ref": "https://host.example/x"}, {"$ref": "#/nowhere"}])
def test_a_schema_that_is_none_is_its_authors_fault(schema: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        check_schema(schema)
    assert error.value.code == "SCHEMA_INVALID"
