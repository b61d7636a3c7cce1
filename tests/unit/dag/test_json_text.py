"""Nothing but plain JSON gets in, and every fault has its place."""

from __future__ import annotations

import pytest

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import escape, faults_of, pointer_to


class _Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "", "é", [], {}, {"a": [1, {"b": None}]}, 2**64 - 1, -(2**63), _Text("x"), [_Text("x")]],
)
def test_json_has_no_faults(value: object) -> None:
    assert faults_of(value) == []


@pytest.mark.parametrize(
    ("value", "pointer", "message"),
    [
        ("a\0", "", "holds a NUL character"),
        ("é\0", "", "holds a NUL character"),
        ("\ud800", "", "holds a lone surrogate"),
        ([1, "\0"], "/1", "NUL"),
        ({"a": {"x/y~z": float("nan")}}, "/a/x~1y~0z", "is not a finite number"),
        ([float("inf")], "/0", "is not a finite number"),
        ([2**64], "/0", "is an integer beyond 64 bits"),
        ([-(2**63) - 1], "/0", "is an integer beyond 64 bits"),
        ({"a": (1,)}, "/a", "is not JSON but tuple"),
        ({"a": b""}, "/a", "is not JSON but bytes"),
        ({"a": {1: 2}}, "/a", "has a bad key: 1 is a key that is not a string"),
        ({"a\0": 1}, "", "has a bad key: 'a\\x00' holds a NUL character"),
    ],
)
def test_a_fault_is_found_with_its_place(value: object, pointer: str, message: str) -> None:
    (fault,) = faults_of(value)
    assert fault.pointer == pointer
    assert message in fault.message


def test_faults_come_in_reading_order_and_not_without_end() -> None:
    value = {"a": ["\0", 1], "b": {"c": float("nan")}, "d": [b"", b"", b""]}
    found = [fault.pointer for fault in faults_of(value, pointer="/plan")]
    assert found == ["/plan/a/0", "/plan/b/c", "/plan/d/0", "/plan/d/1", "/plan/d/2"]
    assert len(faults_of(value, limit=2)) == 2
    assert len(faults_of(dict.fromkeys(range(9), 0), limit=3)) == 3


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}], ids=["lists", "objects"])
def test_nesting_is_bounded_exactly(wrap: object) -> None:
    assert callable(wrap)
    value: object = 1
    for _ in range(64):
        value = wrap(value)
    assert faults_of(value) == []
    (fault,) = faults_of(wrap(value))
    assert fault.message == "is nested deeper than 64 levels"
    for _ in range(200_000):
        value = wrap(value)
    assert len(faults_of(value)) == 1


def test_members_of_a_subclass_are_looked_at_too() -> None:
    class Sub(dict[str, object]):
        pass

    assert faults_of(Sub(a="\0")) == [Fault("/a", "holds a NUL character")]


def test_pointers_escape_what_rfc_6901_reserves() -> None:
    assert escape("a/b~c") == "a~1b~0c"
    assert pointer_to("/plan", ["x", 3, "~/"]) == "/plan/x/3/~0~1"
