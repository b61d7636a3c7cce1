"""The bytes of a body: every fault of them has its place, and how many values there may be is bounded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import orjson
import pytest

from rayloom.dag.errors import Fault
from rayloom.serve import json_body
from rayloom.serve.json_body import parse
from rayloom.serve.problems import Problem

LONG = "is an integer beyond 64 bits"
DEEP = "is nested deeper than 64 levels"


def _refusal(raw: bytes) -> tuple[int, list[Fault]]:
    with pytest.raises(Problem) as refused:
        parse(raw)
    return refused.value.status, list(refused.value.errors)


@pytest.mark.parametrize(
    "number",
    [str(2**64), str(-(2**63) - 1), "9" * 20, "1" + "0" * 308, "1" + "0" * 400, "-" + "7" * 401, "9" * 5_000],
)
def test_an_integer_beyond_64_bits_is_the_same_fault_however_long(number: str) -> None:
    body = b'{"a": [1, {"b/c": %s}], "d": "\\\\", "e": %s}' % ((number.encode(),) * 2)
    assert _refusal(body) == (422, [Fault("/a/1/b~1c", LONG), Fault("/e", LONG)])


@pytest.mark.parametrize(
    "number", ["18446744073709551615", "-9223372036854775808", "12345678901234567890.5", "0.12345678901234567890"]
)
def test_long_numbers_that_fit_are_taken(number: str) -> None:
    document = parse(b'{"a": %s, "b": "9999999999999999999999", "c": "x 9999999999999999999999"}' % number.encode())
    assert document["a"] == (float(number) if "." in number else int(number))


def test_a_float_is_no_integer_however_it_is_written() -> None:
    assert parse(b'{"a": 1e30, "b": 100000000000000000000e1, "c": 1E+00000000000000000000002}') == {
        "a": 1e30,
        "b": 1e21,
        "c": 100.0,
    }


def test_a_long_integer_is_told_beside_other_faults() -> None:
    status, faults = _refusal(b'{"a": "\\u0000", "b": 99999999999999999999}')
    assert (status, [fault.pointer for fault in faults]) == (422, ["/a", "/b"])


@pytest.mark.parametrize("depth", [64, 65, 990, 1_100, 100_000])
def test_what_is_too_deep_is_told_with_the_place_where_it_becomes_so(depth: int) -> None:
    inner = b"[" * depth + b"]" * depth
    body = b'{"n": [{}], "x": 1, "\\u00e9/": [[], "]", %s]}' % inner
    assert _refusal(body) == (422, [Fault("/é~1/2" + "/0" * 62, DEEP)])


@pytest.mark.parametrize("depth", [65, 2_000])
def test_what_is_deep_and_no_object_is_no_object(depth: int) -> None:
    assert _refusal(b" " + b"[" * depth + b"]" * depth) == (422, [Fault("", "must be a JSON object")])


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 2_000,
        b"[" * 2_000 + b"]" * 1_999,
        b"[" * 2_000 + b"]" * 2_001,
        b"[" * 2_000 + b"}" + b"]" * 1_999,
        b"[" * 2_000 + b"1 2" + b"]" * 2_000,
        b'{"a"' * 2_000 + b"}" * 2_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000 + b" 1",
        b'{"a":' * 2_000 + b'"open' + b"}" * 2_000,
        b'{"a":' * 2_000 + b'"\xff"' + b"}" * 2_000,
    ],
    ids=range(10),
)
def test_what_is_deep_and_no_json_is_malformed(body: bytes) -> None:
    assert _refusal(body)[0] == 400


def test_a_long_integer_is_found_where_it_is_deep() -> None:
    assert _refusal(b'{"a":' * 1_010 + b"9" * 400 + b"}" * 1_010) == (422, [Fault("/a" * 64, DEEP)])


def test_a_body_has_a_bounded_number_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MAX_VALUES", 10)
    assert parse(b'{"a": [1, 2, 3], "b": {"c": [4]}, "d": 5}')
    assert parse(b'{"a": "[[,,,,,,,,,,,", "b": "\\",,,,,,,,,,,"}')
    for body in (b'{"a": [1, 2, 3, 4, 5, 6, 7, 8, 9]}', b"[" * 20, b'{"a":' * 10 + b'", '):
        assert _refusal(body) == (413, [])


def test_text_that_is_not_closed_is_looked_through_once() -> None:
    assert _refusal(b"," * 6_000_000 + b'"' + b'\\"' * 1_000_000)[0] == 413


def _peak_bytes(read: Callable[[bytes], object], body: bytes) -> int:
    tracemalloc.start()
    try:
        read(body)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_texts_full_of_escapes_are_left_out_of_the_count_without_taking_memory() -> None:
    body = b'{"prompt": "%s"}' % (b",\\n" * 6_000_000)
    assert _peak_bytes(parse, body) < _peak_bytes(orjson.loads, body) + 2 * len(body)


def test_numbers_that_the_database_would_write_out_at_length_are_refused() -> None:
    body = b'{"context": {}, "plan": {"subtasks": [{"id": "a", "input": {"value": [%s1]}}]}}'
    assert parse(body % (b"1e308," * 400_000))
    status, (fault,) = _refusal(body % (b"1e308," * 450_000))
    assert (status, fault.pointer) == (422, "/plan/subtasks/0/input")
    assert "is too large: with its numbers written out" in fault.message
