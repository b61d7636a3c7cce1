"""Reservations that are granted before they are written down, and how no limit is overspent for that.

A call that is granted waits for no disk and no network. Should the controller be killed before it has written it down,
the next one does not know of it until its caller tells: with a renewal of its lease, or with what it has used. So

- what is granted ahead of the ledger, and not in it yet, is never more than one part in `AHEAD_PART` of any limit that
  it counts against: whatever is more waits until it is written down;
- a controller that grants ahead says so in the ledger first, and until when;
- one that follows within that time, or a call's lease after it, withholds the same part of every limit for so long as
  that lease: every call that it was not told of is heard of by then, or its caller is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from rayloom.actors.call_accounts import amount_of
from rayloom.dag.amount import NOTHING
from rayloom.dag.errors import Transient
from rayloom.dag.model import Reservation
from rayloom.dag.reservations import LEASE_S, fits_ahead
from rayloom.dag.token_port import Quota

AHEAD_S: Final = 60.0
"""For so long at a time it is said that reservations are granted ahead."""


class AheadBook(Protocol):
    """What is asked of the record here; a part of `rayloom.db.ledger.Ledger`."""

    async def granting_ahead_s(self) -> float | None:
        """For how many seconds yet reservations may be granted ahead (less than none: it is over); None: they never
        were."""

    async def grant_ahead(self, seconds: float) -> None:
        """Reservations may be granted ahead for so many seconds from now."""


class Ahead:
    """See the module. Belongs to one controller."""

    def __init__(self, book: AheadBook, *, clock: Callable[[], float]) -> None:
        self._book, self._clock = book, clock
        self._until = self._careful_until = clock()
        self._granted: dict[str, Reservation] = {}
        self._amount = NOTHING
        self._saying: asyncio.Task[None] | None = None

    @property
    def careful_s(self) -> float:
        """For so many seconds yet a part of each limit is withheld; 0: it is not."""
        return max(self._careful_until - self._clock(), 0.0)

    async def begin(self) -> None:
        """Find out whether an earlier controller may have granted what nobody knows. Raises Transient."""
        left_s = await self._book.granting_ahead_s()
        if left_s is not None:
            self._careful_until = self._clock() + LEASE_S + min(left_s, 0.0)

    def grant(self, reservation: Reservation, limits: Iterable[Quota]) -> None:
        """Grant it before it is written down, if that may be, as far as these limits say.

        Not while the share of an earlier controller is withheld: whoever follows this one withholds only one share.
        """
        left_s = self._until - self._clock()
        if left_s < AHEAD_S / 2 and self._saying is None:
            # Before it is too late, so that nobody has to wait for it.
            self._saying = asyncio.ensure_future(self._say())
        amount = self._amount + amount_of(reservation)
        calls = len(self._granted) + 1
        if left_s > 0 and not self.careful_s and all(fits_ahead(quota, amount, calls=calls) for quota in limits):
            self._granted[reservation.id], self._amount = reservation, amount

    async def _say(self) -> None:
        began_s = self._clock()
        # Without it all is written down before, until it can be said.
        with suppress(Transient):
            try:
                await self._book.grant_ahead(AHEAD_S)
                self._until = began_s + AHEAD_S
            finally:
                self._saying = None

    def __contains__(self, id_: str) -> bool:
        """Whether it is granted, and not known to be written down."""
        return id_ in self._granted

    def written(self, id_: str) -> None:
        """It is in the ledger now, or over."""
        reservation = self._granted.pop(id_, None)
        if reservation is not None:
            self._amount -= amount_of(reservation)

    def unwritten(self) -> Sequence[Reservation]:
        """What is granted, and not known to be written down."""
        return tuple(self._granted.values())
