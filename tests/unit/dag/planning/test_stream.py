"""Subtasks out of an answer that is still being written."""

from __future__ import annotations

import json

import pytest

from rayloom.dag.planning.answer import MAX_ANSWER_CHARS
from rayloom.dag.planning.stream import SubtaskStream
from rayloom.dag.values import JsonObject

ITEMS: list[JsonObject] = [
    {"id": "a", "do": 'say "}{" and \\ and ]'},
    {"id": "b", "input": {"x": [{"y": "}"}]}},
    {"id": "c"},
]
TEXT = 'Sure:\n```json\n{"intent": "x", "subtasks" : [\n' + ",\n".join(map(json.dumps, ITEMS)) + "]}\n```"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
def test_each_subtask_comes_once_whatever_the_pieces(size: int) -> None:
    stream = SubtaskStream()
    found: list[JsonObject] = []
    for at in range(0, len(TEXT), size):
        found += stream.feed(TEXT[at : at + size])
    assert found == ITEMS
    assert not stream.is_open
    assert stream.feed(TEXT) == ()


def test_a_subtask_comes_with_its_last_brace() -> None:
    stream = SubtaskStream()
    assert stream.feed('{"subtasks":[{"id":"a"') == ()
    assert stream.feed("}") == ({"id": "a"},)
    assert stream.is_open


@pytest.mark.parametrize("text", ["[x]", '[{"id":}]', '[{"id":"\ud800"}]', '[{"a":' + '{"a":' * 70 + "1" + "}" * 71])
def test_what_is_no_subtask_ends_it(text: str) -> None:
    stream = SubtaskStream()
    assert stream.feed('{"subtasks":' + text) == ()
    assert not stream.is_open


def test_no_more_is_kept_than_is_read() -> None:
    stream = SubtaskStream()
    assert stream.feed("x" * (MAX_ANSWER_CHARS + 1)) == ()
    assert not stream.is_open
