"""Limits that are nearly used up: told once each time that a limit comes to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

from rayloom.dag.errors import Transient
from rayloom.dag.limits import Usage
from rayloom.dag.log_line import LogLine
from rayloom.dag.reservations import shares
from rayloom.dag.token_port import Level, Quota

log = logging.getLogger(__name__)

Limited = Iterable[tuple[Level, str, Quota, Usage]]


class AlertBook(Protocol):
    """What is asked of the record here; a part of `rayloom.db.ledger.Ledger`."""

    async def tell(self, lines: Sequence[LogLine]) -> None:
        """Write lines into logs of tasks."""


class Alerts:
    """See the module. ``warn_share``: from which share on a limit is nearly used up."""

    def __init__(self, book: AlertBook, *, warn_share: float) -> None:
        self._book, self.warn_share = book, warn_share
        self._warned: set[tuple[Level, str, str]] = set()

    async def step(self, limited: Limited) -> None:
        """Tell of every limit that has just come to be nearly used up."""
        near = {
            (level, id_, limit): share
            for level, id_, quota, usage in limited
            for limit, share in shares(quota, usage)
            if share >= self.warn_share
        }
        lines = []
        for (level, id_, limit), share in near.items():
            if (level, id_, limit) in self._warned:
                continue
            log.warning("tokens.limit_near", extra={"level": level, "id": id_, "limit": limit, "share": share})
            if level == "task":
                message = f"{share:.0%} of the budget's {limit} is used"
                lines.append(LogLine(at=datetime.now(UTC), task_id=id_, message=message, level="WARNING"))
        self._warned = set(near)
        # A warning is worth no failure.
        with suppress(Transient):
            await self._book.tell(lines)
