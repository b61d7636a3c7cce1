"""Waiting for the thing itself, with an end, in tests that are not asynchronous."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
GENEROUS_S = 120.0
_never = threading.Event()


def wait_until(
    look: Callable[[], T | None], *, within_s: float = GENEROUS_S, every_s: float = 0.05, what: object = ""
) -> T:
    """The first answer of ``look`` that is true (not empty, not 0). Raises AssertionError without one in time."""
    end = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        left_s = end - time.monotonic()
        assert left_s > 0, f"waited {within_s} s for nothing: {what() if callable(what) else what}"
        _never.wait(min(every_s, left_s))
