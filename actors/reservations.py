"""Reserve, then settle: no model is called before what the call may use at most fits under every limit.

The decision is made in memory and written down before it is answered; what was used is written down before that is
answered. The ledger is the truth: a controller that starts anew reads what is reserved from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from rayloom.actors.call_accounts import Books, CallAccounts
from rayloom.actors.group_commit import GroupCommit
from rayloom.actors.user_accounts import UserAccounts
from rayloom.dag.amount import Amount
from rayloom.dag.errors import Transient
from rayloom.dag.limits import Usage
from rayloom.dag.log_line import LogLine
from rayloom.dag.model import Denied, ModelUse, ProviderLimits, Reservation
from rayloom.dag.reservations import shares
from rayloom.dag.token_port import Level, Quota, Share, TokenFigures, Used
from rayloom.db.ledger import check_reservation

log = logging.getLogger(__name__)

EXPIRED_AT_ONCE: Final = 1000
DENIED_KEPT: Final = 10_000
"""So many subtasks are remembered that a limit kept from calling a model; the oldest may try once in vain."""
PROMISE_S: Final = 60.0
"""What room was found for in admitting a subtask is kept for it so long, or until its attempt has ended."""
SHARES_SHOWN: Final = 200
RESERVING_LANES: Final = 2


class LedgerPort(Books, Protocol):
    """What is asked of the record here; `rayloom.db.ledger.Ledger`."""

    async def reserve(self, reservations: Sequence[Reservation]) -> Mapping[str, str]:
        """Write calls down before they are made; answers the statuses of those that were known already."""

    async def settle(self, settlements: Sequence[tuple[Reservation, ModelUse]]) -> frozenset[str]:
        """Write down what calls used, durably; answers those that were not settled before."""

    async def release_expired(self, *, limit: int) -> Sequence[str]:
        """Give back what is reserved for callers who have been silent for too long."""

    async def tell(self, lines: Sequence[LogLine]) -> None:
        """Write lines into logs of tasks."""

    async def key_quota(self, key_id: str) -> Quota:
        """The limits of a key."""

    async def write_key_quota(self, key_id: str, quota: Quota) -> str:
        """Change the limits of a key."""


@dataclass(slots=True)
class _Sum:
    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0


class Reservations:
    """See the module. ``totals``: who reads totals of the record, and who changes them, hold it, so that nothing is
    counted twice. ``warn_share``: from which share on a limit is told to be nearly used up.
    """

    def __init__(
        self,
        ledger: LedgerPort,
        accounts: CallAccounts,
        *,
        users: UserAccounts,
        totals: asyncio.Lock,
        warn_share: float,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._accounts, self._users = ledger, accounts, users
        self._totals, self._warn_share, self._clock = totals, warn_share, clock
        self._reserving = GroupCommit(self._write_reserved, lanes=RESERVING_LANES)
        self._settling = GroupCommit(self._write_settled)
        self._reading = GroupCommit(self._read_tasks)
        self._writing: dict[str, asyncio.Future[None]] = {}
        self._denied: dict[str, Reservation] = {}
        self._promised: dict[str, float] = {}
        self._warned: set[tuple[Level, str, str]] = set()
        self._used: dict[tuple[str, str], _Sum] = {}
        self._denials: Counter[tuple[Level, str]] = Counter()

    async def reserve(self, reservation: Reservation) -> Denied | None:
        """See `AccountPort`. Raises Bug for what can't be written down."""
        check_reservation(reservation)
        reservation = replace(reservation, id=str(UUID(reservation.id)))
        id_, payer = reservation.id, reservation.payer
        if id_ not in self._accounts.counted:
            await self._users.open(payer.user_id)
            if payer.task_id and payer.task_id not in self._accounts.tasks:
                await self._reading.put(payer.task_id)
        if id_ not in self._accounts.counted:
            self._keep_promise(payer.sub_task_id)
            denied = self._accounts.refusal(reservation)
            if denied is not None and denied.level == "task":
                # Its budget may have been raised a moment ago.
                await self._reading.put(payer.task_id)
                denied = self._accounts.refusal(reservation)
            if denied is not None:
                return self._deny(reservation, denied)
            if id_ not in self._accounts.counted:
                self._denied.pop(payer.sub_task_id, None)
                self._accounts.count(id_, reservation)
                self._writing[id_] = asyncio.ensure_future(self._reserving.put(reservation))
        writing = self._writing.get(id_)
        if writing is not None:
            await asyncio.shield(writing)
        return None

    async def settle(self, reservation: Reservation, use: ModelUse) -> None:
        """See `AccountPort`. Raises Bug for what can't be written down."""
        check_reservation(reservation)
        await self._settling.put((replace(reservation, id=str(UUID(reservation.id))), use))

    def learn(self, model: str, limits: ProviderLimits) -> None:
        """See `AccountPort`."""
        self._accounts.learn(model, limits)

    async def step(self) -> None:
        """Release what has expired, and read again what others may have changed. Raises Transient."""
        async with self._totals:
            expired = await self._ledger.release_expired(limit=EXPIRED_AT_ONCE)
            for id_ in expired:
                self._accounts.uncount(id_, was_made=True)
            await self._accounts.read_again()
        if expired:
            log.warning("tokens.reservations_expired", extra={"count": len(expired)})
        now_s = self._clock()
        for sub_task_id in [id_ for id_, until_s in self._promised.items() if until_s <= now_s]:
            self._keep_promise(sub_task_id)
        await self._warn()

    @property
    def is_holding(self) -> bool:
        """Whether the admission of any subtask depends on what is known here."""
        return bool(self._denied or self._promised)

    def still_denied(self, sub_task_id: str) -> Denied | None:
        """What would keep a subtask from the call of a model that it was denied last; None: nothing that is known."""
        reservation = self._denied.get(sub_task_id)
        denied = None if reservation is None else self._accounts.refusal(reservation)
        # What its budget denies for good is told to its next attempt, which ends it.
        return None if denied is None or _ends(denied) else denied

    def promise(self, sub_task_id: str) -> None:
        """A subtask that was denied a call is admitted: its room is kept for it."""
        reservation = self._denied.pop(sub_task_id, None)
        if reservation is not None:
            self._promised[sub_task_id] = self._clock() + PROMISE_S
            self._accounts.count(_promise_of(sub_task_id), reservation)

    def ended(self, sub_task_id: str) -> None:
        """An attempt has ended: it will not come for what was promised."""
        self._keep_promise(sub_task_id)

    def figures(self, user_id: str = "") -> TokenFigures:
        """What is counted here, for monitoring; with the shares of one user alone, where one is named."""
        counted = [held.amount for id_, held in self._accounts.counted.items() if not id_.startswith(_promise_of(""))]
        reserved = sum(counted, Amount())
        full = [
            Share(level=level, id=id_, limit=limit, share=share)
            for level, id_, quota, usage in self._limited()
            if not user_id or (level, id_) == ("user", user_id)
            for limit, share in shares(quota, usage)
        ]
        full.sort(key=lambda each: -each.share)
        return TokenFigures(
            used=tuple(
                Used(
                    model=model,
                    purpose=purpose,
                    calls=each.calls,
                    tokens_in=each.tokens_in,
                    tokens_out=each.tokens_out,
                    cost_usd=each.cost_usd,
                )
                for (model, purpose), each in self._used.items()
            ),
            denied=tuple((level, limit, count) for (level, limit), count in self._denials.items()),
            reserved_calls=len(counted),
            reserved_tokens=reserved.tokens,
            reserved_cost_usd=reserved.cost_usd,
            shares=tuple(full[:SHARES_SHOWN]),
            warn_share=self._warn_share,
        )

    async def _read_tasks(self, batch: Sequence[str]) -> None:
        async with self._totals:
            await self._accounts.read_tasks(list(set(batch)))

    def _deny(self, reservation: Reservation, denied: Denied) -> Denied:
        sub_task_id = reservation.payer.sub_task_id
        self._denials[denied.level, denied.limit] += 1
        if sub_task_id and not _ends(denied):
            self._denied.pop(sub_task_id, None)
            self._denied[sub_task_id] = reservation
            if len(self._denied) > DENIED_KEPT:
                del self._denied[next(iter(self._denied))]
        fields = {"level": denied.level, "limit": denied.limit, "retry_in_s": denied.retry_in_s}
        log.info("tokens.denied", extra={**fields, "task_id": reservation.payer.task_id, "sub_task_id": sub_task_id})
        return denied

    def _keep_promise(self, sub_task_id: str) -> None:
        if self._promised.pop(sub_task_id, None) is not None:
            self._accounts.uncount(_promise_of(sub_task_id), was_made=False)

    async def _write_reserved(self, batch: Sequence[Reservation]) -> None:
        try:
            known = await self._ledger.reserve(batch)
        except BaseException:
            for each in batch:
                self._accounts.uncount(each.id, was_made=False)
            raise
        finally:
            for each in batch:
                self._writing.pop(each.id, None)
        for each in batch:
            # One that was settled before it was asked for again, or released, is not reserved anew.
            if known.get(each.id, "reserved") != "reserved":
                self._accounts.uncount(each.id, was_made=True)

    async def _write_settled(self, batch: Sequence[tuple[Reservation, ModelUse]]) -> None:
        first = {reservation.id: (reservation, use) for reservation, use in reversed(batch)}
        async with self._totals:
            try:
                news = await self._ledger.settle(list(first.values()))
            except BaseException:
                # Nobody knows whether it was written.
                self._users.mistrust({given.payer.user_id for given, _ in batch})
                raise
            for id_, (given, use) in first.items():
                held = self._accounts.counted.get(id_)
                self._accounts.uncount(id_, was_made=True)
                if id_ in news:
                    self._count_used(given if held is None else held.reservation, use)
                elif held is not None:
                    # It was settled before, and that answer was lost: what is known of its user may lack it.
                    self._count_used(held.reservation, use)
                    self._users.mistrust({held.reservation.payer.user_id})

    def _count_used(self, reservation: Reservation, use: ModelUse) -> None:
        self._accounts.spend(reservation.payer, reservation.model, Amount.of(use.tokens, use.cost_usd))
        total = self._used.setdefault((reservation.model, reservation.purpose), _Sum())
        total.calls += 1
        total.tokens_in += use.tokens_in
        total.tokens_out += use.tokens_out
        total.cost_usd += use.cost_usd

    def _limited(self) -> Iterator[tuple[Level, str, Quota, Usage]]:
        for id_, quota, usage in self._users.items():
            yield "user", id_, quota, usage
        for level, id_, account in self._accounts.limited():
            yield level, id_, account.quota, account.usage

    async def _warn(self) -> None:
        """Tell, once, of every limit that has just come to be nearly used up."""
        near = {
            (level, id_, limit): share
            for level, id_, quota, usage in self._limited()
            for limit, share in shares(quota, usage)
            if share >= self._warn_share
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
            await self._ledger.tell(lines)


def _ends(denied: Denied) -> bool:
    return denied.level == "task" and denied.retry_in_s is None


def _promise_of(sub_task_id: str) -> str:
    return f"~{sub_task_id}"
