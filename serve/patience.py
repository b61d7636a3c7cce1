"""How long a client puts up with failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rayloom.dag.errors import Transient

BACKOFF_INITIAL_S: Final = 0.2
BACKOFF_MAX_S: Final = 5.0


class Patience:
    """How long failures in a row are put up with, and how long to wait between them."""

    def __init__(self, limit_s: float, clock: Callable[[], float], pause: Callable[[float], object]) -> None:
        self._limit_s, self._clock, self._pause = limit_s, clock, pause
        self._since: float | None = None
        self._failures = 0

    def reset(self) -> None:
        """Something went well: the next failure is the first."""
        self._since, self._failures = None, 0

    def wait_or_raise(self, error: Transient) -> None:
        """Wait before the next try; raises ``error`` when the wait would go past the limit."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        wait_s = min(BACKOFF_MAX_S, BACKOFF_INITIAL_S * 2**self._failures)
        if error.retry_after_s is not None:
            wait_s = max(error.retry_after_s, BACKOFF_INITIAL_S)
        if now + wait_s - self._since > self._limit_s:
            raise error
        self._failures = min(self._failures + 1, 16)
        self._pause(wait_s)
