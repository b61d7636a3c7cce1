"""Reservations that are granted before they are written down, and how no limit is overspent for that.

A call that is granted waits for no disk and no network. Should the controller be killed before it has written it down,
the next one does not know of it until its caller tells: with a renewal of its lease, or with what it has used. So

- what is granted ahead of the ledger, and not in it yet, is never more than one part in `AHEAD_PART` of any limit that
  it counts against: whatever is more waits until it is written down;
- a controller that grants ahead says so in the ledger first, and that it does so no longer once it has rested and all
  is written down;
- one that finds that said withholds the same part of every limit until it could hear callers for as long as a call's
  lease: every call that it was not told of is heard of by then, or its caller is dead.
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

REST_S: Final = 60.0
"""Where nobody wanted anything for so long, it is said that nothing is granted ahead."""


class AheadBook(Protocol):
    """What is asked of the record here; a part of `rayloom.db.ledger.Ledger`."""

    async def is_granted_ahead(self) -> bool:
        """Whether reservations may have been granted that are not written down."""

    async def grant_ahead(self, is_ahead: bool) -> None:
        """Reservations may be granted before they are written down from now on, or are not, and all are written."""


class Ahead:
    """See the module. Belongs to one controller."""

    def __init__(self, book: AheadBook, *, clock: Callable[[], float]) -> None:
        self._book, self._clock = book, clock
        self._busy_until = self._careful_until = clock()
        self._granted: dict[str, Reservation] = {}
        self._amount = NOTHING
        self._is_said = False
        self._saying: asyncio.Task[None] | None = None

    @property
    def careful_s(self) -> float:
        """For so many seconds yet a part of each limit is withheld; 0: it is not."""
        return max(self._careful_until - self._clock(), 0.0)

    async def begin(self) -> None:
        """Find out whether an earlier controller may have granted what nobody knows. Raises Transient.

        However long ago that was: nobody could be heard since, and a call may take hours.
        """
        self._is_said = await self._book.is_granted_ahead()
        if self._is_said:
            self._be_careful()

    def unheard(self) -> None:
        """Somebody could not be heard until now: what is withheld is so for a lease's time from now."""
        if self.careful_s:
            self._be_careful()

    def grant(self, reservation: Reservation, limits: Iterable[Quota]) -> None:
        """Grant it before it is written down, if that may be, as far as these limits say.

        Not while the share of an earlier controller is withheld: whoever follows this one withholds only one share.
        """
        self._busy_until = self._clock() + REST_S
        if not self._is_said and self._saying is None:
            self._saying = asyncio.ensure_future(self._say(True))
        amount = self._amount + amount_of(reservation)
        calls = len(self._granted) + 1
        if self._is_said and not self.careful_s and all(fits_ahead(quota, amount, calls=calls) for quota in limits):
            self._granted[reservation.id], self._amount = reservation, amount

    def rest(self) -> None:
        """Say that nothing is granted ahead, where that is so by now: who follows need not withhold anything."""
        is_busy = self._granted or self.careful_s or self._clock() < self._busy_until
        if self._is_said and not is_busy and self._saying is None:
            # Nothing is, from here on: it is not known when that is written.
            self._is_said = False
            self._saying = asyncio.ensure_future(self._say(False))

    def _be_careful(self) -> None:
        self._careful_until = self._clock() + LEASE_S

    async def _say(self, is_ahead: bool) -> None:
        # Without it all is written down before, until it can be said.
        with suppress(Transient):
            try:
                await self._book.grant_ahead(is_ahead)
                self._is_said = is_ahead
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
