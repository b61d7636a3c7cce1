"""What is made to take long ends all the same: each of these would take minutes if the work grew with the square."""

from __future__ import annotations

import json

import pytest

from rayloom.dag.planning.answer import MAX_ANSWER_CHARS, find_answer
from rayloom.dag.planning.brief import attachments_of
from rayloom.dag.planning.select import select
from rayloom.dag.planning.stream import SubtaskStream
from rayloom.dag.planning.verdict import judge
from tests.unit.dag.planning.views import VIEWS

PIECES = [
    '"\\',
    '"',
    "{",
    "[",
    '{"a":',
    "[{",
    ",",
    ", ",
    "//",
    '{"subtasks":[',
    "```\n",
    "}",
    '{"subtasks":[{"id":"a"},',
]


@pytest.mark.parametrize("piece", PIECES)
def test_any_answer_is_looked_through(piece: str) -> None:
    text = (piece * MAX_ANSWER_CHARS)[:MAX_ANSWER_CHARS]
    assert find_answer(text).value is None
    stream = SubtaskStream()
    for at in range(0, len(text), 64):
        stream.feed(text[at : at + 64])


@pytest.mark.parametrize("piece", ["a-", "a/", "a.", "a", "https://", "文件a", "-", "@", "a@"])
def test_any_prompt_is_searched_for_files_and_tools(piece: str) -> None:
    prompt = (piece * 100_000)[:100_000]
    attachments_of(prompt)
    select(prompt, VIEWS, most=1)


@pytest.mark.parametrize("piece", ["{{", "{{ ", "${", "{{a.output", " ", "$", "}", "${a.output", "{{a.output}} "])
def test_any_text_of_an_input_is_looked_through(piece: str) -> None:
    text = ("{{" + piece * 90_000)[:90_000]
    steps = [{"id": "a", "tool": "any"}, {"id": "b", "tool": "any", "input": {"x": text, "y": {"$ref": text}}}]
    judge(json.dumps({"subtasks": steps}), prompt="x", language="en", tools=VIEWS, nodes=())
