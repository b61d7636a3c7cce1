"""The accounts of the users who have limits, kept in line with the record."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from rayloom.actors.accounts import Unread, UserAccount
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Transient
from rayloom.dag.limits import WINDOW_S, Usage
from rayloom.dag.token_port import Quota
from rayloom.db.quotas import Standing

log = logging.getLogger(__name__)

WINDOW_READ_S: Final = float(WINDOW_S + 1)
FAILED_READINGS_MAX: Final = 3
"""After so many users who could not be read, one by one, the rest waits for the next turn."""


class Accounts(Protocol):
    """What the controller needs of the record; ``rayloom.db.quotas.QuotaStore``."""

    async def limited(self) -> Mapping[str, Quota]:
        """The quotas of all users who have a limit."""

    async def quota(self, user_id: str) -> Quota:
        """The limits of a user."""

    async def write(self, user_id: str, quota: Quota) -> str:
        """Change the limits of a user; answers the user's id as the record spells it."""

    async def leased(self, users: Sequence[str]) -> Mapping[str, AbstractSet[str]]:
        """The subtasks that have an attempt under way."""

    async def standings(self, users: Sequence[str], *, window_s: float) -> Mapping[str, Standing]:
        """What counts against these users now."""


class UserAccounts:
    """See the module. ``turn``: admissions and readings of the record hold it, so that what was read is applied to the
    state it was read for. ``totals``: so do readings of totals and what changes them, so that nothing is counted twice;
    it is taken before the other. ``reserved``: what is reserved for a user now.
    """

    def __init__(
        self,
        record: Accounts,
        *,
        turn: asyncio.Lock,
        totals: asyncio.Lock,
        reserved: Callable[[str], Amount],
        clock: Callable[[], float],
    ) -> None:
        self._record, self._turn, self._totals = record, turn, totals
        self._reserved, self._clock = reserved, clock
        self.known: dict[str, UserAccount] = {}
        self.unread: dict[str, Unread] = {}
        self._miscounted: set[str] = set()

    def __len__(self) -> int:
        return len(self.known) + len(self.unread)

    def items(self) -> Iterator[tuple[str, Quota, Usage]]:
        """The users whose standing is known."""
        for user_id, account in self.known.items():
            yield user_id, account.quota, account.usage

    def take_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """Those are all the users who have limits."""
        for accounts in (self.known, self.unread):
            for user_id in accounts.keys() - quotas.keys():
                accounts.pop(user_id)
        for user_id, quota in quotas.items():
            self.limit(user_id, quota)

    def limit(self, user_id: str, quota: Quota) -> None:
        """A user has these limits from now on."""
        known = self.known.get(user_id) or self.unread.setdefault(user_id, Unread(quota))
        known.quota = quota

    def forget(self, user_id: str) -> None:
        """A user has no limits any more."""
        self.known.pop(user_id, None)
        self.unread.pop(user_id, None)

    def mistrust(self, users: AbstractSet[str]) -> None:
        """What is known of the tokens and the money of these users may be wrong: it is to be read again."""
        self._miscounted |= users

    async def open(self, user_id: str) -> None:
        """Have the standing of a user known who has limits. Raises Transient where it can't be read."""
        if user_id in self.unread:
            await self.read([user_id])
            if user_id in self.unread:
                raise Transient("TOKENS_STARTING", "what the user has used is not known yet", retry_after_s=1.0)

    async def read(self, users: Sequence[str]) -> None:
        """Open the accounts of those who are still unread, all at once or, where that fails, each by itself.

        No turn is taken while the record is read: nothing of theirs is admitted meanwhile, and ends are noted down.
        """
        unread = {user_id: self.unread[user_id] for user_id in users if user_id in self.unread}
        if not unread or await self._open(unread) or len(unread) == 1:
            return
        failed = 0
        for user_id, each in unread.items():
            if not await self._open({user_id: each}):
                failed += 1
                if failed == FAILED_READINGS_MAX:
                    return

    async def compare(self) -> None:
        """Take the leases in the record for true. Raises Transient."""
        if not self.known:
            return
        async with self._totals, self._turn:
            leased = await self._record.leased(tuple(self.known))
            now_s = self._clock()
            lost = {
                user_id: count
                for user_id, account in self.known.items()
                if (count := account.compare(leased.get(user_id, frozenset()), now_s=now_s))
            }
            if lost:
                log.info("tokens.ends_recovered", extra={"users": len(lost), "attempts": sum(lost.values())})
            # Nobody told us what they used; as long as that can't be read, it is asked for again.
            self._miscounted = (self._miscounted | lost.keys()) & self.known.keys()
            if self._miscounted:
                standings = await self._record.standings(tuple(self._miscounted), window_s=WINDOW_READ_S)
                for user_id, standing in standings.items():
                    self.known[user_id].take_tokens(standing, now_s=self._clock())
                self._miscounted.clear()

    async def _open(self, unread: Mapping[str, Unread]) -> bool:
        async with self._totals:
            try:
                standings = await self._record.standings(tuple(unread), window_s=WINDOW_READ_S)
            except Transient as error:
                log.warning("tokens.standing_unknown", extra={"users": len(unread), "error": error.message})
                async with self._turn:
                    for user_id, each in unread.items():
                        if self.unread.get(user_id) is each:
                            # To the end of the row: the next turn begins with others.
                            self.unread[user_id] = self.unread.pop(user_id)
                return False
            async with self._turn:
                now_s = self._clock()
                for user_id, each in unread.items():
                    # Not one whose limits were taken away and set again meanwhile: its ends were not all noted down.
                    if self.unread.get(user_id) is each:
                        del self.unread[user_id]
                        account = UserAccount.of(
                            each.quota, standings[user_id], reserved=self._reserved(user_id), now_s=now_s
                        )
                        self.known[user_id] = account
                        for end in each.ended:
                            account.end(end, now_s=now_s)
        return True
