"""The token controller: who may start how much, and whose models may be called. A cache of the record, rebuilt from it
at any time. Calls of models have a file of their own, `reservations`.

Users without limits have no account here and cost one look into a dictionary. A user whose limits are known, but not
yet what counts against them, waits until the record has told; nobody else waits for that.

The record decides in the end: every few seconds the attempts that count are compared with the leases in the database,
so that a scheduler which died before it could say ``finished`` leaks nothing for long, and attempts that this
controller forgot in a restart are counted again.

A scheduler tells of an end only after it is in the database, and asks before it takes a lease.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rayloom.actors.alerts import AlertBook
from rayloom.actors.call_accounts import CallAccounts
from rayloom.actors.reservations import LedgerPort, Reservations
from rayloom.actors.user_accounts import Accounts, UserAccounts
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Transient
from rayloom.dag.limits import is_limited, limited, may_start, within_reason
from rayloom.dag.model import Denied, ModelUse, ProviderLimits, Reservation
from rayloom.dag.token_port import Ask, Finished, Held, Limited, Quota, TokenFigures
from rayloom.dag.values import Health

RECONCILE_EVERY_S: Final = 5.0
WARN_SHARE: Final = 0.8
START_PATIENCE_S: Final = 10.0
STANDING_UNKNOWN: Final = "standing_unknown"
"""Stands for the limit in the answer to a user whose standing was not read yet."""
UNKNOWN_ASK_AGAIN_S: Final = 1.0


class TokenController:
    """Admits what may start, and reserves what models may use. Implements ``TokenPort``.

    ``models``: the limits of models by their names. ``warn_share``: from which share on a limit is told to be nearly
    used up. ``clock`` counts seconds and never goes back.
    """

    def __init__(
        self,
        record: Accounts,
        ledger: LedgerPort,
        alerts: AlertBook,
        *,
        models: Mapping[str, Quota] | None = None,
        warn_share: float = WARN_SHARE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record, self._ledger = record, ledger
        self._clock = clock
        self._turn, totals = asyncio.Lock(), asyncio.Lock()
        self._totals = totals
        self._rebuilt = asyncio.Event()
        self._users = UserAccounts(record, turn=self._turn, totals=totals, reserved=self._reserved, clock=clock)
        self._call_accounts = CallAccounts(ledger, user=self._users.known.get, models=models or {}, clock=clock)
        self._calls = Reservations(
            ledger, alerts, self._call_accounts, users=self._users, totals=totals, warn_share=warn_share, clock=clock
        )

    async def step(self) -> float:
        """Rebuild, then compare with the record; answers in how many seconds to do so again."""
        await self.reconcile()
        return RECONCILE_EVERY_S

    async def reconcile(self) -> None:
        """Bring quotas and counts in line with the record. The first time this is the rebuilding after a start.

        Raises Transient when it is not known who has limits, or what holds a lease.
        """
        async with self._turn:
            self._users.take_quotas(await self._record.limited())
        if not self._rebuilt.is_set():
            await self._calls.rebuild()
            self._rebuilt.set()
        await self._users.read(list(self._users.unread))
        await self._users.compare()
        await self._calls.step()

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        """Which of a batch must wait; the order of ``asked`` is the order in which places are given.

        Ends are counted first, so that they make room at once. To ask again for what is admitted, or to tell an end
        twice, changes nothing. Raises Transient (``TOKENS_STARTING``) while the record can't be read after a start.
        """
        await self._ready()
        async with self._turn:
            if not len(self._users) and not self._calls.promises.is_holding:
                return ()
            now_s = self._clock()
            for end in finished:
                self._calls.promises.keep(end.sub_task_id)
                account = self._users.known.get(end.user_id)
                if account is not None:
                    account.end(end, now_s=now_s)
                elif end.user_id in self._users.unread:
                    self._users.unread[end.user_id].ended.append(end)
            held: list[Held] = []
            ahead: Counter[str] = Counter()
            for ask in asked:
                account = self._users.known.get(ask.user_id)
                if account is None and ask.user_id in self._users.unread:
                    held.append(_held(ask, STANDING_UNKNOWN, UNKNOWN_ASK_AGAIN_S))
                    continue
                if account is not None and ask.sub_task_id in account.running:
                    account.running[ask.sub_task_id] = now_s
                    continue
                if (denied := self._calls.promises.still_denied(ask.sub_task_id)) is not None:
                    # It would start only to be denied again.
                    held.append(_denied(ask, denied))
                    continue
                if account is not None:
                    wait = may_start(account.quota, account.usage, ahead=ahead[ask.user_id], now_s=now_s)
                    if wait is not None:
                        ahead[ask.user_id] += 1
                        held.append(_held(ask, wait.limit, wait.ask_again_in_s))
                        continue
                    account.start(ask.sub_task_id, now_s=now_s)
                self._calls.promises.promise(ask.sub_task_id)
            return held

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """See `AccountPort`. Raises Transient (``TOKENS_STARTING``), and Bug for what can't be written down."""
        await self._ready()
        return await self._calls.reserve(reservation)

    async def renew(self, reservation: Reservation) -> None:
        """See `AccountPort`. Raises Transient, and Bug for what can't be written down."""
        await self._ready()
        await self._calls.renew(reservation)

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """See `AccountPort`. Raises Transient, and Bug for what can't be written down."""
        await self._ready()
        await self._calls.settle(reservation, use)

    async def learn(self, model: str, limits: ProviderLimits) -> None:
        """See `AccountPort`."""
        self._calls.learn(model, limits)

    async def figures(self, user_id: str = "") -> TokenFigures:
        """What is counted, for monitoring; with the shares of one user alone, where one is named."""
        return self._calls.figures(user_id)

    async def limited(self, user_id: str) -> Limited | None:
        """What holds back everything of a user now. Raises Transient (``TOKENS_STARTING``)."""
        await self._ready()
        account = self._users.known.get(user_id)
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
                self._users.limit(user_id, quota)
            else:
                self._users.forget(user_id)
        await self._users.read([user_id])

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of an API key. Raises Transient when the record can't be read."""
        return await self._ledger.key_quota(key_id)

    async def set_key_quota(self, key_id: str, quota: Quota) -> None:
        """Change the limits of an API key, durably; the next call of a model goes by them.

        Raises UserError (``KEY_UNKNOWN``, ``QUOTA_INVALID``) and Transient.
        """
        await self._ready()
        async with self._totals:
            await self._ledger.write_key_quota(key_id, quota)
            await self._call_accounts.read_keys()

    async def health(self) -> Health:
        """Alive; ``ok`` once the record was read. Touches no lock: it is asked from another event loop."""
        return {
            "ok": self._rebuilt.is_set(),
            "limited_users": len(self._users),
            "attempts": sum(len(account.running) for account in tuple(self._users.known.values())),
            "reserved": len(self._call_accounts.counted),
        }

    def _reserved(self, user_id: str) -> Amount:
        return self._call_accounts.reserved("user", user_id)[1]

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


def _denied(ask: Ask, denied: Denied) -> Held:
    return Held(
        sub_task_id=ask.sub_task_id,
        limit=denied.limit if denied.level == "user" else f"{denied.level}.{denied.limit}",
        ask_again_in_s=within_reason(math.inf if denied.retry_in_s is None else denied.retry_in_s),
        free_in_s=denied.retry_in_s,
        alone=True,
    )


def _held(ask: Ask, limit: str, ask_again_in_s: float) -> Held:
    return Held(sub_task_id=ask.sub_task_id, limit=limit, ask_again_in_s=ask_again_in_s, free_in_s=ask_again_in_s)
