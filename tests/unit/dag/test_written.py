"""A value is at most so long when it is written out."""

from __future__ import annotations

import pytest

from rayloom.dag.values import Json
from rayloom.dag.written import MAX_GROWTH, written_chars, written_fault


@pytest.mark.parametrize(
    ("number", "chars"),
    [
        (1e308, 309),
        (1.7976931348623157e308, 309),
        (-1e100, 102),
        (5e-324, 326),
        (1e-7, 9),
        (0.1, 3),
        (0.0, 3),
        (2**63, 19),
    ],
)
def test_a_number_is_counted_with_all_its_digits(number: float, chars: int) -> None:
    assert chars <= written_chars(number) <= chars + 40


def test_everything_else_is_counted_as_it_is_written() -> None:
    value: Json = {"a": ["é" * 100, None, True], "b" * 50: {}}
    assert 150 < written_chars(value) < 300
    assert written_chars(["x" * 100] * 100, limit=500) < 800
    for text in ("9e307", "0", '""', "[]"):
        assert written_chars([float(text) if text[0].isdigit() else text]) <= MAX_GROWTH * (len(text) + 2)


def test_the_part_that_is_too_large_is_told() -> None:
    large: Json = [1e308] * 100
    assert written_fault({"a": large}, limit=100_000) is None
    cases: list[tuple[Json, str]] = [
        ({"a": 1, "b/c": [1, large]}, "/b~1c/1"),
        ([[[[[large]]]]], "/0/0/0/0"),
        ({"a": "x" * 20_001}, "/a"),
        ([{"a": large}] * 3, "/0/a"),
    ]
    for value, pointer in cases:
        fault = written_fault(value, limit=20_000)
        assert fault is not None
        assert (fault.pointer, "more than 20,000 characters" in fault.message) == (pointer, True)
    halves = written_fault([large, large], limit=40_000)
    assert halves is not None
    assert halves.pointer == ""
