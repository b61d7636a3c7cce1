"""The token controller: who may start how much, per user. A cache of the record, rebuilt from it at any time.

Users without limits have no account here and cost one look into a dictionary. A user whose limits are known, but not
yet what counts against them, waits until the record has told; nobody else waits for that.

The record decides in the end: every few seconds the attempts that count are compared with the leases in the database,
so that a scheduler which died before it could say ``finished`` leaks nothing for long, and attempts that this
controller forgot in a restart are counted again.

A scheduler tells of an end only after it is in the database, and asks before it takes a lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from rayloom.dag.errors import Transient
from rayloom.dag.limits import WINDOW_S, Usage, Window, is_limited, limited, may_start
from rayloom.dag.ports import Ask, Finished, Health, Held, Limited, Quota
from rayloom.db.quotas import Standing

log = logging.getLogger(__name__)

RECONCILE_EVERY_S: Final = 5.0
GRACE_S: Final = 15.0
"""An admitted attempt without a lease counts for so long: its lease may be about to be taken."""
START_PATIENCE_S: Final = 10.0
WINDOW_READ_S: Final = float(WINDOW_S + 1)
STANDING_UNKNOWN: Final = "standing_unknown"
"""Stands for the limit in the answer to a user whose standing was not read yet."""
UNKNOWN_ASK_AGAIN_S: Final = 1.0
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


@dataclass(slots=True)
class _Account:
    """A user with limits. ``running``: what was admitted, by when it was last known to be so.

    ``since``: when this controller admitted it. What it knows from the record alone is not here.
    """

    quota: Quota
    usage: Usage = field(default_factory=Usage)
    running: dict[str, float] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, quota: Quota, standing: Standing, *, now_s: float) -> _Account:
        account = cls(quota, running=dict.fromkeys(standing.leased, now_s))
        starts = Window.of([(now_s - age_s, amount) for age_s, amount in standing.starts], now_s=now_s)
        account.usage = Usage(concurrent=len(account.running), requests=starts)
        account.take_tokens(standing, now_s=now_s)
        return account

    def take_tokens(self, standing: Standing, *, now_s: float) -> None:
        recent = Window.of([(now_s - age_s, amount) for age_s, amount in standing.tokens], now_s=now_s)
        self.usage = replace(self.usage, tokens=recent, tokens_total=standing.tokens_total)

    def start(self, sub_task_id: str, *, now_s: float) -> None:
        self.running[sub_task_id] = self.since[sub_task_id] = now_s
        self.usage = self.usage.started(now_s=now_s)

    def end(self, end: Finished, *, now_s: float) -> None:
        since = self.since.pop(end.sub_task_id, None)
        if self.running.pop(end.sub_task_id, None) is None:
            # Said twice, or of an attempt that ended before this account was opened: the record had it already.
            return
        if end.started or since is None:
            self.usage = self.usage.ended(end.tokens, now_s=now_s)
        else:
            self.usage = self.usage.returned(started_s=since)

    def compare(self, leased: AbstractSet[str], *, now_s: float) -> int:
        """Take the leases for true; answers how many attempts turn out to have ended without our being told."""
        for sub_task_id in leased:
            self.running[sub_task_id] = now_s
        lost = [sub_task_id for sub_task_id, seen_s in self.running.items() if now_s - seen_s > GRACE_S]
        for sub_task_id in lost:
            del self.running[sub_task_id]
            self.since.pop(sub_task_id, None)
        self.usage = replace(self.usage, concurrent=len(self.running))
        return len(lost)


@dataclass(slots=True, eq=False)
class _Unread:
    """A user with limits whose standing was not read yet. ``ended``: what was told meanwhile."""

    quota: Quota
    ended: list[Finished] = field(default_factory=list)


class TokenController:
    """Admits what may start. Implements ``TokenPort``; ``clock`` counts seconds and never goes back."""

    def __init__(self, accounts: Accounts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._record = accounts
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._unread: dict[str, _Unread] = {}
        self._miscounted: set[str] = set()
        # Admissions and readings of the record take turns: what was read is applied to the state it was read for.
        self._turn = asyncio.Lock()
        self._rebuilt = asyncio.Event()

    async def step(self) -> float:
        """Rebuild, then compare with the record; answers in how many seconds to do so again."""
        await self.reconcile()
        return RECONCILE_EVERY_S

    async def reconcile(self) -> None:
        """Bring quotas and counts in line with the record. The first time this is the rebuilding after a start.

        Raises Transient when it is not known who has limits, or what holds a lease.
        """
        async with self._turn:
            quotas = await self._record.limited()
            for user_id in self._accounts.keys() - quotas.keys():
                del self._accounts[user_id]
            for user_id in self._unread.keys() - quotas.keys():
                del self._unread[user_id]
            for user_id, quota in quotas.items():
                self._limit(user_id, quota)
            self._rebuilt.set()
        await self._read(list(self._unread))
        async with self._turn:
            await self._compare()

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        """Which of a batch must wait; the order of ``asked`` is the order in which places are given.

        Ends are counted first, so that they make room at once. To ask again for what is admitted, or to tell an end
        twice, changes nothing. Raises Transient (``TOKENS_STARTING``) while the record can't be read after a start.
        """
        await self._ready()
        async with self._turn:
            if not self._accounts and not self._unread:
                return ()
            now_s = self._clock()
            for end in finished:
                account = self._accounts.get(end.user_id)
                if account is not None:
                    account.end(end, now_s=now_s)
                elif end.user_id in self._unread:
                    self._unread[end.user_id].ended.append(end)
            held: list[Held] = []
            ahead: Counter[str] = Counter()
            for ask in asked:
                account = self._accounts.get(ask.user_id)
                if account is None:
                    if ask.user_id in self._unread:
                        held.append(_held(ask, STANDING_UNKNOWN, UNKNOWN_ASK_AGAIN_S))
                    continue
                if ask.sub_task_id in account.running:
                    account.running[ask.sub_task_id] = now_s
                    continue
                wait = may_start(account.quota, account.usage, ahead=ahead[ask.user_id], now_s=now_s)
                if wait is None:
                    account.start(ask.sub_task_id, now_s=now_s)
                    continue
                ahead[ask.user_id] += 1
                held.append(_held(ask, wait.limit, wait.ask_again_in_s))
            return held

    async def limited(self, user_id: str) -> Limited | None:
        """What holds back everything of a user now. Raises Transient (``TOKENS_STARTING``)."""
        await self._ready()
        account = self._accounts.get(user_id)
        return None if account is None else limited(account.quota, account.usage, now_s=self._clock())

    async def quota(self, user_id: str) -> Quota:
        """The limits of a user. Raises Transient when the record can't be read."""
        return await self._record.quota(user_id)

    async def set_quota(self, user_id: str, quota: Quota) -> None:
        """Change the limits of a user, durably; the next admission goes by them.

        Raises UserError (``USER_UNKNOWN``, ``QUOTA_INVALID``) and Transient.
        """
        await self._ready()
        async with self._turn:
            user_id = await self._record.write(user_id, quota)
            if is_limited(quota):
                self._limit(user_id, quota)
            else:
                self._accounts.pop(user_id, None)
                self._unread.pop(user_id, None)
        await self._read([user_id])

    async def health(self) -> Health:
        """Alive; ``ok`` once the record was read. Touches no lock: it is asked from another event loop."""
        accounts = tuple(self._accounts.values())
        return {
            "ok": self._rebuilt.is_set(),
            "limited_users": len(accounts) + len(self._unread),
            "attempts": sum(len(account.running) for account in accounts),
        }

    async def _ready(self) -> None:
        if self._rebuilt.is_set():
            return
        try:
            async with asyncio.timeout(START_PATIENCE_S):
                await self._rebuilt.wait()
        except TimeoutError as error:
            raise Transient(
                "TOKENS_STARTING", "the token controller waits for the database", retry_after_s=1.0
            ) from error

    def _limit(self, user_id: str, quota: Quota) -> None:
        known = self._accounts.get(user_id) or self._unread.setdefault(user_id, _Unread(quota))
        known.quota = quota

    async def _read(self, users: Sequence[str]) -> None:
        """Open the accounts of those who are still unread, all at once or, where that fails, each by itself.

        No turn is taken while the record is read: nothing of theirs is admitted meanwhile, and ends are noted down.
        """
        unread = {user_id: self._unread[user_id] for user_id in users if user_id in self._unread}
        if not unread or await self._open(unread) or len(unread) == 1:
            return
        failed = 0
        for user_id, each in unread.items():
            if not await self._open({user_id: each}):
                failed += 1
                if failed == FAILED_READINGS_MAX:
                    return

    async def _open(self, unread: Mapping[str, _Unread]) -> bool:
        try:
            standings = await self._record.standings(tuple(unread), window_s=WINDOW_READ_S)
        except Transient as error:
            log.warning("tokens.standing_unknown", extra={"users": len(unread), "error": error.message})
            async with self._turn:
                for user_id, each in unread.items():
                    if self._unread.get(user_id) is each:
                        # To the end of the row: the next turn begins with others.
                        self._unread[user_id] = self._unread.pop(user_id)
            return False
        async with self._turn:
            now_s = self._clock()
            for user_id, each in unread.items():
                # Not one whose limits were taken away and set again meanwhile: its ends were not all noted down.
                if self._unread.get(user_id) is each:
                    del self._unread[user_id]
                    account = self._accounts[user_id] = _Account.of(each.quota, standings[user_id], now_s=now_s)
                    for end in each.ended:
                        account.end(end, now_s=now_s)
        return True

    async def _compare(self) -> None:
        if not self._accounts:
            return
        leased = await self._record.leased(tuple(self._accounts))
        now_s = self._clock()
        lost = {
            user_id: count
            for user_id, account in self._accounts.items()
            if (count := account.compare(leased.get(user_id, frozenset()), now_s=now_s))
        }
        if lost:
            log.info("tokens.ends_recovered", extra={"users": len(lost), "attempts": sum(lost.values())})
        # Nobody told us what they used; as long as that can't be read, it is asked for again.
        self._miscounted = (self._miscounted | lost.keys()) & self._accounts.keys()
        if self._miscounted:
            standings = await self._record.standings(tuple(self._miscounted), window_s=WINDOW_READ_S)
            for user_id, standing in standings.items():
                self._accounts[user_id].take_tokens(standing, now_s=self._clock())
            self._miscounted.clear()


def _held(ask: Ask, limit: str, ask_again_in_s: float) -> Held:
    return Held(sub_task_id=ask.sub_task_id, limit=limit, ask_again_in_s=ask_again_in_s)
