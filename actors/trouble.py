"""What goes wrong again and again while something is away: told at once, and then ever more rarely."""

from __future__ import annotations

import logging
from time import monotonic

from redis.exceptions import RedisError

from rayloom.dag.errors import RayloomError
from rayloom.db.engine import is_unavailable

FIRST_S = 1.0
LONGEST_S = 60.0
OVER_S = 10.0
"""After so long without any it is over, and the next one is news."""


class Trouble:
    """The trouble of one place, such as a loop that is begun anew after each error."""

    def __init__(self) -> None:
        self._what = ""
        self._seen_at = self._tell_at = 0.0
        self._pause_s = FIRST_S

    def is_news(self, error: BaseException) -> bool:
        """Whether this is worth a line: another kind of error than the last one, or the same for long enough."""
        now, what = monotonic(), type(error).__name__
        if what != self._what or now - self._seen_at > OVER_S:
            self._pause_s = FIRST_S
        elif now < self._tell_at:
            self._seen_at = now
            return False
        else:
            self._pause_s = min(self._pause_s * 2, LONGEST_S)
        self._what, self._seen_at, self._tell_at = what, now, now + self._pause_s
        return True

    def tell(self, log: logging.Logger, event: str, error: BaseException, *, known: bool, **more: object) -> None:
        """Log what is news: one line where it is ``known`` what such an error means, else with its traceback."""
        if self.is_news(error):
            level = logging.WARNING if known else logging.ERROR
            log.log(level, event, exc_info=not known, extra={"error": f"{type(error).__name__}: {error}", **more})


def is_away(error: BaseException) -> bool:
    """Whether it says that something is away, and needs no traceback."""
    return isinstance(error, RayloomError | RedisError | OSError) or is_unavailable(error)
