"""Finding the JSON in what a model said."""

from __future__ import annotations

import pytest

from rayloom.dag.planning.answer import MAX_ANSWER_CHARS, find_answer

ONE = '{"subtasks":[{"id":"a"}]}'


@pytest.mark.parametrize(
    "text",
    [
        ONE,
        f"```json\n{ONE}\n```",
        f"Sure! {{like this}} and [1]:\n{ONE}\nGood luck {{}}",
        '{"plan":{"subtasks":[{"id":"a"}]}}',
        '{"answer":{"plan":[{"id":"a"}]}}',
        '{"steps":[{"id":"a"}]}',
        '[{"id":"a"}]',
        '{"subtasks":[{"id":"a",},]}',
        '{"subtasks":[{"id":"a"}] // all\n}',
        '{"subtasks":[{"id":"a"}]}\0'.replace("\0", " "),
    ],
)
def test_a_plan_is_found_wherever_it_stands(text: str) -> None:
    found = find_answer(text)
    assert found.fault is None
    assert found.value is not None
    assert found.value["subtasks"] == [{"id": "a"}]


def test_slips_are_mended_outside_of_strings_only() -> None:
    found = find_answer('{"subtasks":[{"id":"True, // ]","ok":True,"no":None,"nan":NaN,}]}')
    assert found.value == {"subtasks": [{"id": "True, // ]", "ok": True, "no": None, "nan": None}]}
    assert found.notes


def test_questions_alone_are_an_answer() -> None:
    assert find_answer('{"questions":["Which?"]}').value == {"questions": ["Which?"], "subtasks": []}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("First I search.", "no JSON"),
        ('{"text":"x"}', "no list `subtasks`"),
        ("[]", "no list `subtasks`"),
        ('{"plan":{"plan":{"plan":{"subtasks":[]}}}}', "no list `subtasks`"),
        ('{"plan":1}', "no list `subtasks`"),
        ('{"subtasks":[{"id":"a"', "breaks off"),
        ('{"subtasks":[{"id":"a', "breaks off"),
        ("{'subtasks':[]}", "not JSON"),
        ("[" * 20_000 + "]" * 20_000, "nested"),
        ('{"subtasks":' + "[" * 70 + "]" * 70 + "}", "nested"),
        ("{" * 100, "not JSON"),
        ("x" * (MAX_ANSWER_CHARS + 1), "much shorter"),
        ('{"subtasks":[1e999]}', "finite"),
        ('{"intent":"x","subtasks":[{"id":"a","input":{"tasks":[{"id":"b"}]}},', "breaks off"),
        ('{"steps":["look","think"]}', "no list `subtasks`"),
    ],
)
def test_what_is_no_plan_says_why(text: str, says: str) -> None:
    found = find_answer(text)
    assert found.value is None
    assert found.fault is not None
    assert says in found.fault.message


def test_a_number_that_python_does_not_read_is_a_fault() -> None:
    found = find_answer('{"subtasks": [{"id": "a", "input": {"n": ' + "9" * 5_000 + "}}]}")
    assert found.value is None
    assert found.fault is not None
    assert "a number that is too long" in found.fault.message
