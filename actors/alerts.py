"""Limits that are nearly used up: told once each time that a limit comes to it.

Of what is used in all, that is once until its limit is raised, or its task has ended; of what is used in a minute, once
until it has been far from its limit for a minute. A task that rests is where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from rayloom.dag.errors import Transient
from rayloom.dag.limits import WINDOW_S, Usage
from rayloom.dag.reservations import shares
from rayloom.dag.token_port import Level, Quota, Share
from rayloom.db.alerts import Limit

log = logging.getLogger(__name__)

Limited = Iterable[tuple[Level, str, Quota, Usage]]


class AlertBook(Protocol):
    """What is asked of the record here; `rayloom.db.alerts.AlertStore`."""

    async def open_alerts(self) -> frozenset[Limit]:
        """The limits that are known to be nearly used up."""

    async def alert(self, near: Sequence[Share]) -> frozenset[Limit]:
        """Write down limits that are nearly used up; answers those of whom that was not known yet."""

    async def alerts_over(self, limits: Collection[Limit]) -> None:
        """These limits are far from being used up again."""

    async def alerts_of_ended(self, tasks: Collection[str]) -> frozenset[str]:
        """Which of these tasks have ended, or are no more; the alerts of their limits are over."""


class Alerts:
    """See the module. ``warn_share``: from which share on a limit is nearly used up."""

    def __init__(self, book: AlertBook, *, warn_share: float, clock: Callable[[], float]) -> None:
        self._book, self.warn_share, self._clock = book, warn_share, clock
        self._near_at: dict[Limit, float] | None = None
        """When each was last seen to be nearly used up; None before the record was asked."""
        self._looked_s = clock()

    async def step(self, limited: Limited) -> None:
        """Tell of every limit that has just come to be nearly used up. What can't be written now is told next time."""
        now_s = self._clock()
        seen = {
            (level, id_, limit): Share(level=level, id=id_, limit=limit, share=share)
            for level, id_, quota, usage in limited
            for limit, share in shares(quota, usage, now_s=now_s)
        }
        near = {limit: each for limit, each in seen.items() if each.share >= self.warn_share}
        # A warning is worth no failure.
        with suppress(Transient):
            if self._near_at is None:
                self._near_at = dict.fromkeys(await self._book.open_alerts(), now_s)
            if unknown := [each for limit, each in near.items() if limit not in self._near_at]:
                new = await self._book.alert(unknown)
                for each in unknown:
                    if (each.level, each.id, each.limit) in new:
                        fields = {"level": each.level, "id": each.id, "limit": each.limit, "share": each.share}
                        log.warning("tokens.limit_near", extra=fields)
            self._near_at |= dict.fromkeys(near, now_s)
            old = [limit for limit, near_s in self._near_at.items() if now_s - near_s > WINDOW_S]
            # Nothing is known of a task that rests; of anybody else, there is no such limit any more.
            resting = [limit for limit in old if limit[0] == "task" and limit not in seen]
            if over := [limit for limit in old if limit[0] != "task" or limit in seen]:
                await self._book.alerts_over(over)
                self._forget(over)
            if resting and now_s - self._looked_s > WINDOW_S:
                ended = await self._book.alerts_of_ended({id_ for _, id_, _ in resting})
                self._forget([limit for limit in resting if limit[1] in ended])
                self._looked_s = now_s

    def _forget(self, over: Iterable[Limit]) -> None:
        for limit in over:
            if self._near_at is not None:
                self._near_at.pop(limit, None)
