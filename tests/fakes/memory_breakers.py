"""The table of the breakers in memory."""

from __future__ import annotations

from collections.abc import Mapping

from rayloom.dag.breaker import Breaker
from rayloom.dag.errors import Transient


class MemoryBreakers:
    """``BreakerStore``. ``away``: it does not answer."""

    def __init__(self) -> None:
        self.rows: dict[str, Breaker] = {}
        self.away = False

    async def read(self) -> Mapping[str, Breaker]:
        """See `BreakerStore`."""
        self._answer()
        return dict(self.rows)

    async def keep(self, key: str, breaker: Breaker) -> None:
        """See `BreakerStore`."""
        self._answer()
        if breaker.state == "closed":
            self.rows.pop(key, None)
        else:
            self.rows[key] = Breaker(state="open", retry_at=breaker.retry_at, openings=breaker.openings)

    def _answer(self) -> None:
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "the database did not answer")
