"""Reserve, then settle: no model is called before what the call may use at most fits under every limit.

The decision is made in memory. It is written down before it is answered, or in a moment where little enough is at
stake (see `ahead`); what was used is written down before that is answered. The ledger is the truth: a controller that
starts anew reads what is reserved from it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID

from rayloom.actors.ahead import Ahead, AheadBook
from rayloom.actors.alerts import AlertBook, Alerts
from rayloom.actors.call_accounts import Books, CallAccounts
from rayloom.actors.call_figures import CallFigures
from rayloom.actors.comparison import ComparedBook, Comparison
from rayloom.actors.group_commit import GroupCommit
from rayloom.actors.promises import Promises
from rayloom.actors.user_accounts import UserAccounts
from rayloom.dag.amount import Amount
from rayloom.dag.limits import Usage
from rayloom.dag.model import Denied, ModelUse, Payer, ProviderLimits, Reservation
from rayloom.dag.reservations import LEASE_S, shares
from rayloom.dag.token_port import Level, Quota, Share, TokenFigures
from rayloom.db.ledger import Released
from rayloom.db.ledger_rows import check_reservation

log = logging.getLogger(__name__)

LEFT_AT_ONCE: Final = 1000
RESERVING_LANES: Final = 2


class LedgerPort(Books, AheadBook, ComparedBook, Protocol):
    """What is asked of the record here; `rayloom.db.ledger.Ledger`."""

    async def reserve(self, reservations: Sequence[Reservation]) -> Mapping[str, str]:
        """Write calls down, or that they are still under way; answers the statuses of those that are over."""

    async def settle(self, settlements: Sequence[tuple[Reservation, ModelUse]]) -> Mapping[str, Amount]:
        """Write down what calls used, durably; answers what those that were not settled before add to what counts."""

    async def left(self, *, expired: bool, limit: int) -> Mapping[str, bool]:
        """The calls that their callers have left; True: their leases are over. ``expired``: also for that alone."""

    async def release(self, ids: Sequence[str]) -> Mapping[str, Released]:
        """Give back what is reserved for calls that were left, and count what they have used at least."""

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of a key."""

    async def write_key_quota(self, key_id: str, quota: Quota) -> str:
        """Change the limits of a key."""


class Reservations:
    """See the module. ``totals``: who reads totals of the record, and who changes them, hold it, so that nothing is
    counted twice. ``warn_share``: from which share on a limit is told to be nearly used up.
    """

    def __init__(
        self,
        ledger: LedgerPort,
        alerts: AlertBook,
        accounts: CallAccounts,
        *,
        users: UserAccounts,
        totals: asyncio.Lock,
        warn_share: float,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._accounts, self._users = ledger, accounts, users
        self._totals, self._clock = totals, clock
        self.promises = Promises(accounts, refusal=self._refusal, clock=clock)
        self._ahead = Ahead(ledger, clock=clock)
        self._alerts = Alerts(alerts, warn_share=warn_share, clock=clock)
        self._heard_from = math.inf
        self._left: frozenset[str] = frozenset()
        self._reserving = GroupCommit(self._write_reserved, lanes=RESERVING_LANES)
        self._settling = GroupCommit(self._write_settled)
        self._reading = GroupCommit(self._read_tasks)
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._comparison = Comparison(ledger, accounts, is_unwritten=self._is_unwritten, clock=clock)
        self._figures = CallFigures(warn_share=warn_share)

    async def rebuild(self) -> None:
        """Take over from an earlier controller. To be called once, at first. Raises Transient."""
        await self._accounts.rebuild()
        # At last: nobody is heard before.
        await self._ahead.begin()
        self._heard_from = self._clock()

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """See `AccountPort`. Raises Bug for what can't be written down."""
        reservation = _checked(reservation)
        id_, payer = reservation.id, reservation.payer
        if id_ not in self._accounts.counted:
            await self._know(payer)
        if id_ not in self._accounts.counted:
            self.promises.keep(payer.sub_task_id)
            denied = self._refusal(reservation)
            if denied is not None and denied.level == "task":
                # Its budget may have been raised a moment ago.
                await self._reading.put(payer.task_id)
                denied = self._refusal(reservation)
            if denied is not None:
                return self._deny(reservation, denied)
            if id_ not in self._accounts.counted:
                self.promises.granted(payer.sub_task_id)
                self._accounts.count(id_, reservation)
                self._ahead.grant(reservation, self._accounts.quotas(reservation))
                self._write(reservation)
        writing = self._writing.get(id_)
        if writing is not None and id_ not in self._ahead:
            await asyncio.shield(writing)
        return None

    async def renew(self, reservation: Reservation) -> None:
        """See `AccountPort`. Raises Bug for what can't be written down, and Transient."""
        reservation = _checked(reservation)
        if reservation.id not in self._accounts.counted:
            # The call is made, whatever the limits say by now. Who is read later is read with what is counted here.
            self._accounts.count(reservation.id, reservation)
        await self._reserving.put(reservation)

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """See `AccountPort`. Raises Bug for what can't be written down."""
        await self._settling.put((_checked(reservation), use))

    def learn(self, model: str, limits: ProviderLimits) -> None:
        """See `AccountPort`."""
        self._accounts.learn(model, limits)

    async def step(self) -> None:
        """Release what was left, and read again what others may have changed. Raises Transient."""
        for each in self._ahead.unwritten():
            if each.id not in self._writing:
                self._write(each)
        self._ahead.rest()
        async with self._totals:
            await self._release()
            await self._compare()
            await self._accounts.read_again()
        self.promises.forget_old()
        await self._alerts.step(self._limited())

    def figures(self, user_id: str = "") -> TokenFigures:
        """What is counted here, for monitoring; with the shares of one user alone, where one is named."""
        now_s = self._clock()
        full = (
            Share(level=level, id=id_, limit=limit, share=share)
            for level, id_, quota, usage in self._limited()
            if not user_id or (level, id_) == ("user", user_id)
            for limit, share in shares(quota, usage, now_s=now_s)
        )
        return self._figures.told((held.amount for held in self._accounts.counted.values()), full)

    async def _know(self, payer: Payer) -> None:
        """Read what is not known yet of whose limits a call counts against."""
        await self._users.open(payer.user_id)
        if payer.task_id and payer.task_id not in self._accounts.tasks:
            await self._reading.put(payer.task_id)

    def _refusal(self, reservation: Reservation) -> Denied | None:
        return self._accounts.refusal(reservation, careful_s=self._ahead.careful_s)

    async def _read_tasks(self, batch: Sequence[str]) -> None:
        async with self._totals:
            await self._accounts.read_tasks(list(set(batch)))

    def _deny(self, reservation: Reservation, denied: Denied) -> Denied:
        payer = reservation.payer
        self._figures.denied(denied)
        self.promises.deny(reservation, denied)
        fields = {"level": denied.level, "limit": denied.limit, "retry_in_s": denied.retry_in_s}
        log.info("tokens.denied", extra={**fields, "task_id": payer.task_id, "sub_task_id": payer.sub_task_id})
        return denied

    def _write(self, reservation: Reservation) -> None:
        writing = self._writing[reservation.id] = asyncio.ensure_future(self._reserving.put(reservation))
        # Of what was granted ahead nobody waits to hear that it could not be written yet.
        writing.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _write_reserved(self, batch: Sequence[Reservation]) -> None:
        try:
            over = await self._ledger.reserve(batch)
        except BaseException:
            # Renewals, too: nobody is heard who can't be written down.
            self._unheard()
            for each in batch:
                # What somebody waits to hear of is not granted; what is under way already is.
                if each.id in self._writing and each.id not in self._ahead:
                    self._accounts.uncount(each.id, was_made=False)
            raise
        finally:
            for each in batch:
                self._writing.pop(each.id, None)
        for each in batch:
            self._ahead.written(each.id)
            # One that was settled before it was asked for again, or released, is not reserved anew.
            if each.id in over:
                self._accounts.uncount(each.id, was_made=True)
                # By whom, and what it used, is not known here.
                self._users.mistrust({each.payer.user_id})

    def _unheard(self) -> None:
        self._heard_from = self._clock()
        self._ahead.unheard()

    async def _release(self) -> None:
        """Give back what dead callers had reserved. With the totals held."""
        # Nobody was heard before this controller was there to hear, or while the ledger was away.
        left = await self._ledger.left(expired=self._clock() - self._heard_from > LEASE_S, limit=LEFT_AT_ONCE)
        # An attempt that has ended a moment ago may be about to settle.
        dead = [id_ for id_, has_expired in left.items() if has_expired or id_ in self._left]
        self._left = frozenset(left) - frozenset(dead)
        released = await self._ledger.release(dead) if dead else {}
        for id_, each in released.items():
            held = self._accounts.counted.get(id_)
            self._accounts.uncount(id_, was_made=True)
            self._ahead.written(id_)
            if held is None:
                self._users.mistrust({each.user_id})
            else:
                self._accounts.spend(held.reservation.payer, held.reservation.model, each.used)
        if released:
            log.warning("tokens.reservations_released", extra={"count": len(released)})

    async def _compare(self) -> None:
        """Mend what is counted and the ledger has otherwise. With the totals held."""
        found = await self._comparison.differences()
        for each in found:
            reservation = each.held.reservation
            if (recorded := each.recorded) is None:
                continue
            self._accounts.uncount(reservation.id, was_made=True)
            used = Amount.of(recorded.use.tokens, recorded.use.cost_usd)
            if recorded.status == "settled":
                self._count_used(reservation, recorded.use, used)
            else:
                self._accounts.spend(reservation.payer, reservation.model, used)
            # Of the user it may have been read already.
            self._users.mistrust({reservation.payer.user_id})
        if lost := [replace(each.held.reservation, lease_s=LEASE_S) for each in found if each.recorded is None]:
            # As if they were renewed: of those whose callers are dead it is for the last time.
            await self._write_reserved(lost)
        if found:
            log.warning("tokens.differences_mended", extra={"count": len(found), "unrecorded": len(lost)})

    def _is_unwritten(self, id_: str) -> bool:
        return id_ in self._writing or id_ in self._ahead

    async def _write_settled(self, batch: Sequence[tuple[Reservation, ModelUse]]) -> None:
        first = {reservation.id: (reservation, use) for reservation, use in reversed(batch)}
        async with self._totals:
            try:
                news = await self._ledger.settle(list(first.values()))
            except BaseException:
                # Nobody knows whether it was written.
                self._unheard()
                self._users.mistrust({given.payer.user_id for given, _ in batch})
                raise
            for id_, (given, use) in first.items():
                held = self._accounts.counted.get(id_)
                self._accounts.uncount(id_, was_made=True)
                self._ahead.written(id_)
                if id_ in news:
                    self._count_used(given if held is None else held.reservation, use, news[id_])
                elif held is not None:
                    # It was settled before, and that answer was lost: what is known of its user may lack it.
                    self._count_used(held.reservation, use, Amount.of(use.tokens, use.cost_usd))
                    self._users.mistrust({held.reservation.payer.user_id})

    def _count_used(self, reservation: Reservation, use: ModelUse, added: Amount) -> None:
        self._accounts.spend(reservation.payer, reservation.model, added)
        self._figures.used(reservation.model, reservation.purpose, use)

    def _limited(self) -> Iterator[tuple[Level, str, Quota, Usage]]:
        for id_, quota, usage in self._users.items():
            yield "user", id_, quota, usage
        for level, id_, account in self._accounts.limited():
            yield level, id_, account.quota, account.usage


def _checked(reservation: Reservation) -> Reservation:
    """With its id as the ledger spells it. Raises Bug for what can't be written down."""
    check_reservation(reservation)
    return replace(reservation, id=str(UUID(reservation.id)))
