"""Did you mean …? The nearest of the names that exist, for messages about one that does not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

_MAX_COMPARED = 2_000
"""Comparing is slow; among more names than this the first ones must do."""


def nearest(word: str, names: Iterable[str], *, count: int = 3) -> list[str]:
    """Up to ``count`` of ``names`` that look like ``word``, best first."""
    return get_close_matches(word[:128], islice(names, _MAX_COMPARED), n=count)


def did_you_mean(word: str, names: Iterable[str], *, count: int = 3) -> str:
    """``"; did you mean a, b?"``, ready to end a sentence with; empty where nothing is near."""
    near = nearest(word, names, count=count)
    return f"; did you mean {', '.join(near)}?" if near else ""
