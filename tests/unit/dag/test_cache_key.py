"""Which calls share a key."""

from __future__ import annotations

import hashlib

import pytest

from rayloom.dag.cache_key import cache_key, input_digest
from rayloom.dag.values import Json

CALL: dict[str, str] = {"tool": "t", "version": "1", "scope": "ann"}
INPUT: Json = {"a": 1, "b": {"c": [1, 2], "d": None}}


def test_the_order_of_keys_says_nothing() -> None:
    turned: Json = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert cache_key(**CALL, input=INPUT) == cache_key(**CALL, input=turned)
    assert len(cache_key(**CALL, input=INPUT)) == 64
    assert input_digest(INPUT) == input_digest(turned)


@pytest.mark.parametrize(
    ("other", "input_"),
    [
        ({"tool": "u"}, INPUT),
        ({"version": "2"}, INPUT),
        ({"scope": "bob"}, INPUT),
        ({"scope": ""}, INPUT),
        ({}, {"a": 1, "b": {"c": [2, 1], "d": None}}),
        ({}, {"a": "1", "b": {"c": [1, 2], "d": None}}),
        ({}, None),
        ({"tool": "t1", "version": ""}, INPUT),
    ],
)
def test_everything_else_does(other: dict[str, str], input_: Json) -> None:
    assert cache_key(**CALL | other, input=input_) != cache_key(**CALL, input=INPUT)


def test_the_digest_of_an_input_is_that_of_its_json() -> None:
    assert input_digest({"b": [True, None], "a": 1}) == hashlib.sha256(b'{"a":1,"b":[true,null]}').hexdigest()
    assert input_digest({"a": 1}) != input_digest({"a": "1"})
