"""What is counted of calls, compared with the ledger now and then, which is right.

They differ where an answer of the ledger was lost and nobody asked again (of a settlement whose caller died, of a
release), and where the database came back without what it had confirmed last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from rayloom.actors.call_accounts import CallAccounts, Counted
from rayloom.dag.reservations import LEASE_S
from rayloom.db.ledger import Recorded

EVERY_S: Final = LEASE_S
"""A call that is counted for longer is looked up as often at most."""
AT_ONCE: Final = 1000


class ComparedBook(Protocol):
    """What is asked of the record here; a part of `rayloom.db.ledger.Ledger`."""

    async def recorded(self, ids: Sequence[str]) -> Mapping[str, Recorded]:
        """Those of these calls that are written down."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that is counted. ``recorded``: that it is over; None: nothing is written down of it."""

    held: Counted
    recorded: Recorded | None


class Comparison:
    """See the module. ``is_unwritten``: whether a call is granted ahead of the ledger, or being written down."""

    def __init__(
        self,
        book: ComparedBook,
        accounts: CallAccounts,
        *,
        is_unwritten: Callable[[str], bool],
        clock: Callable[[], float],
    ) -> None:
        self._book, self._accounts, self._is_unwritten, self._clock = book, accounts, is_unwritten, clock
        self._waiting: deque[str] = deque()
        self._began_s = clock()

    async def differences(self) -> Sequence[Difference]:
        """The differences of some calls that are counted for long, in turn. Raises Transient.

        What is not written down yet is none, also what is about to be.
        """
        now_s, counted = self._clock(), self._accounts.counted
        if not self._waiting and now_s - self._began_s >= EVERY_S:
            self._waiting.extend(id_ for id_, held in counted.items() if now_s - held.since_s >= EVERY_S)
            self._began_s = now_s
        next_ids = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
        asked = {id_: counted[id_] for id_ in next_ids if id_ in counted and not self._is_unwritten(id_)}
        known = await self._book.recorded(list(asked)) if asked else {}
        return [
            Difference(held, known.get(id_))
            for id_, held in asked.items()
            # It may be another one by now, or none.
            if counted.get(id_) is held and not (id_ in known and known[id_].is_open)
        ]
