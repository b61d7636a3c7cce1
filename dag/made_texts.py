"""The functions of JMESPath that make text, ``join`` and ``to_string``, with a bound on all that one search makes.

How long a joined text becomes is a product of lengths that no expression tells; so it is counted while it is made.
"""

from __future__ import annotations

import json
from typing import Final

from jmespath.functions import Functions, signature

from rayloom.dag.values import Json

MAX_TEXT_CHARS: Final = 64 * 1024 * 1024
"""As much as an output may have."""


class TooLarge(ValueError):
    """The output is too large for an expression that makes more of it, or what it gives too large or too deep."""


class BoundedFunctions(Functions):
    """The functions for one search."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = self._left = max_chars

    @signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        self._count(sum(map(len, array)) + len(separator) * max(len(array) - 1, 0))
        return separator.join(array)

    @signature({"types": []})
    def _func_to_string(self, arg: Json) -> str:
        if isinstance(arg, str):
            return arg
        text = json.dumps(arg, separators=(",", ":"))
        self._count(len(text))
        return text

    def _count(self, chars: int) -> None:
        self._left -= chars
        if self._left < 0:
            raise TooLarge(f"its texts have more than {self._max_chars:,} characters; use the tool json.query")
