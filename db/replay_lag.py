"""How far a replica is behind, by one clock only: that of the process which looks.

Positions are bytes of WAL. When the primary had written a position is noted as it is seen; the replica is as late as
the oldest such moment that it has not replayed yet. No clock of a server comes in, and an idle primary ages nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_SAMPLES: Final = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """``lag_s`` is None as long as the replica has not reached where the primary was when it was first looked at."""

    lag_s: float | None
    lag_bytes: int


class ReplayLag:
    """Where the primary was, and when. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._written = 0
        self._has_reached = False

    def note(self, now: float, written: int) -> None:
        """The primary has written as far as ``written``."""
        if written < self._written:
            # Another primary, or one from a backup: what was noted is of another history.
            self._samples.clear()
            self._has_reached = False
        if written > self._written or not self._samples:
            self._samples.append((now, written))
        if len(self._samples) > MAX_SAMPLES:
            # The first one may be reached; the second says how late the replica is then. The next is missed least.
            del self._samples[2]
        self._written = written

    def of(self, now: float, replayed: int) -> Lag:
        """How far behind a replica is that has replayed as far as ``replayed``."""
        if not self._samples:
            return Lag(lag_s=None, lag_bytes=0)
        late = next((place for place, (_, written) in enumerate(self._samples) if written > replayed), None)
        self._has_reached = self._has_reached or late != 0
        since = None if late is None else self._samples[late][0]
        # One is kept, so that the next position is known for a new one.
        self._samples = self._samples[-1:] if late is None else self._samples[late:]
        lag_s = 0.0 if since is None else now - since
        return Lag(lag_s=lag_s if self._has_reached else None, lag_bytes=max(0, self._written - replayed))
