"""What a tool returns is made fit to store, or refused with a reason."""

from __future__ import annotations

import datetime
from enum import IntEnum, StrEnum
from typing import NamedTuple

import pytest

from rayloom.dag.errors import UserError
from rayloom.dag.output import clean_text, sanitise
from rayloom.dag.values import Json


class _Colour(StrEnum):
    RED = "red"


class _Level(IntEnum):
    HIGH = 3


class _Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (1, 1),
        (-(2**63), -(2**63)),
        (2**64, float(2**64)),
        (10**400, None),
        (1.5, 1.5),
        (float("nan"), None),
        (float("inf"), None),
        ("a\0b", "a\ufffdb"),
        ("\ud800x", "\ufffdx"),
        ("é😀", "é😀"),
        (_Colour.RED, "red"),
        (_Level.HIGH, 3),
        ((1, (2,)), [1, [2]]),
        (_Point(1, 2), [1, 2]),
        ([], []),
        ({}, {}),
        ({1: "a", None: "b", 1.5: "d", "k\0": "e"}, {"1": "a", "null": "b", "1.5": "d", "k\ufffd": "e"}),
        ({False: 0}, {"false": 0}),
        ({"b": 1, "a": [{"x": (1, None)}]}, {"b": 1, "a": [{"x": [1, None]}]}),
    ],
)
def test_a_value_becomes_json(value: object, expected: Json) -> None:
    assert sanitise(value) == expected
    assert type(sanitise(value)) is type(expected)


def test_keys_keep_their_order_and_the_later_of_equal_ones_stays() -> None:
    assert list(sanitise({"b": 1, "a": 2, "c": [3]})) == ["b", "a", "c"]  # type: ignore[arg-type]
    assert sanitise({1: "number", "1": "text"}) == {"1": "text"}


@pytest.mark.parametrize("value", [b"x", {1, 2}, object(), datetime.date(2025, 1, 1), [b"x"], {"a": iter("x")}, 1j])
def test_what_json_has_no_word_for_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="JSON can't carry") as refused:
        sanitise(value)
    assert refused.value.code == "OUTPUT_INVALID"


def test_a_key_that_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(UserError, match="key of type tuple") as refused:
        sanitise({(1, 2): 3})
    assert refused.value.code == "OUTPUT_INVALID"


def test_depth_is_bounded_exactly() -> None:
    assert sanitise([[1]], max_depth=2) == [[1]]
    with pytest.raises(UserError, match="deeper than 2") as refused:
        sanitise([[[1]]], max_depth=2)
    assert refused.value.code == "OUTPUT_TOO_DEEP"


def test_a_value_that_holds_itself_is_too_deep() -> None:
    endless: list[object] = []
    endless += [endless, endless]
    with pytest.raises(UserError) as refused:
        sanitise(endless)
    assert refused.value.code == "OUTPUT_TOO_DEEP"


def test_no_depth_overflows_the_stack() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UserError, match="deeper than 200"):
        sanitise(deep)


def test_a_value_that_repeats_its_parts_can_not_fill_the_memory() -> None:
    folded: object = [1]
    for _ in range(40):
        folded = [folded, folded]
    with pytest.raises(UserError, match="more than 1,000 values") as refused:
        sanitise(folded, max_values=1_000)
    assert refused.value.code == "OUTPUT_TOO_LARGE"


def test_the_value_itself_is_left_alone() -> None:
    value = {"a": [1, {"b": "x\0"}]}
    cleaned = sanitise(value)
    assert value == {"a": [1, {"b": "x\0"}]}
    assert cleaned == {"a": [1, {"b": "x\ufffd"}]}
    assert clean_text("a\0") == "a\ufffd"
