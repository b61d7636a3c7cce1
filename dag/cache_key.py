"""What two calls must have in common for one's result to serve the other; and what tells their inputs apart."""

from __future__ import annotations

import hashlib
from typing import Final

import orjson

from rayloom.dag.values import Json

_FORMAT: Final = 1
"""Part of every key: a release that keeps results in another form asks under other keys."""
_CANONICAL: Final = orjson.OPT_SORT_KEYS


def input_digest(input: Json) -> str:
    """What tells one input from another: the SHA-256 of its JSON with sorted keys, as 64 hexadecimal digits."""
    return hashlib.sha256(orjson.dumps(input, option=_CANONICAL)).hexdigest()


def cache_key(*, tool: str, version: str, input: Json, scope: str) -> str:
    """The key of a call's result: 64 hexadecimal digits.

    ``input`` is the input of the tool, its references resolved; the order of its keys says nothing. ``scope`` names
    who may be given the result: a user's id, or empty for all users.
    """
    return hashlib.sha256(orjson.dumps([_FORMAT, tool, version, scope, input], option=_CANONICAL)).hexdigest()
