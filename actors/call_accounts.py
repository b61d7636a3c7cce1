"""The accounts that a call of a model counts against: those of its user, its key, its task and its model.

All of them are counted in one go, between two turns of the event loop: a call is reserved everywhere or nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from rayloom.actors.accounts import CallAccount, UserAccount
from rayloom.dag.amount import NOTHING, Amount
from rayloom.dag.limits import WINDOW_S, Usage, Window
from rayloom.dag.model import Denied, Payer, ProviderLimits, Reservation
from rayloom.dag.reservations import Provider, refusal, withheld
from rayloom.dag.token_port import Level, Quota
from rayloom.db.ledger import Recent, Standing

IDLE_S: Final = 60.0
"""A task of whom no call was asked for so long is forgotten: it is read again when one is."""
NO_LIMITS: Final = Quota()


class Books(Protocol):
    """What is read of the record here; a part of `rayloom.db.ledger.Ledger`."""

    async def open_calls(self) -> Sequence[Reservation]:
        """What is reserved now."""

    async def recent(self, *, window_s: float) -> Sequence[Recent]:
        """The calls of the last ``window_s`` seconds."""

    async def tasks(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        """Budgets of tasks, and what they have used."""

    async def limited_keys(self) -> Mapping[str, Standing]:
        """The keys that have limits."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A reservation that is counted everywhere, and since when."""

    reservation: Reservation
    since_s: float

    @property
    def amount(self) -> Amount:
        """What it may use at most."""
        return amount_of(self.reservation)


def amount_of(reservation: Reservation) -> Amount:
    """What a call may use at most."""
    return Amount.of(reservation.tokens, reservation.cost_usd)


class CallAccounts:
    """See the module. ``user``: the account of a user, None for one without limits. ``models``: limits by model."""

    def __init__(
        self,
        books: Books,
        *,
        user: Callable[[str], UserAccount | None],
        models: Mapping[str, Quota],
        clock: Callable[[], float],
    ) -> None:
        self._books, self._user, self._clock = books, user, clock
        self.counted: dict[str, Counted] = {}
        """The calls, by their ids."""
        self._promised: dict[str, Counted] = {}
        """Room that is kept for calls, by their subtasks: nobody has asked an endpoint for it yet."""
        self.keys: dict[str, CallAccount] = {}
        self.tasks: dict[str, CallAccount] = {}
        self._models = {name: CallAccount(quota) for name, quota in models.items()}
        self._providers: dict[str, Provider] = {}

    def refusal(self, reservation: Reservation, *, careful_s: float = 0.0) -> Denied | None:
        """What denies a call now; None: it fits everywhere. Of several denials a final one, else the longest.

        ``careful_s``: for so long yet a part of each limit is withheld.
        """
        now_s, asked, payer = self._clock(), amount_of(reservation), reservation.payer
        limits = list(self._limits(payer, reservation.model))
        found = [refusal(level, quota, usage, asked, now_s=now_s) for level, quota, usage in limits]
        if careful_s > 0 and not any(found):
            careful = (refusal(level, withheld(quota), usage, asked, now_s=now_s) for level, quota, usage in limits)
            found = [
                each and replace(each, retry_in_s=min(each.retry_in_s or careful_s, careful_s)) for each in careful
            ]
        if (provider := self._providers.get(reservation.model)) is not None:
            promised = [each.amount for each in self._promised.values() if each.reservation.model == reservation.model]
            found.append(provider.refusal(asked, promised=promised, now_s=now_s))
        return max(filter(None, found), key=_weight, default=None)

    def count(self, id_: str, reservation: Reservation) -> None:
        """Reserve it everywhere."""
        self.counted[id_] = self._hold(reservation)
        if (provider := self._providers.get(reservation.model)) is not None:
            self._providers[reservation.model] = provider.called(amount_of(reservation))

    def uncount(self, id_: str, *, was_made: bool) -> None:
        """Give back what was reserved, where it still is. ``was_made``: the call may have been made: it is no news."""
        if (held := self.counted.pop(id_, None)) is not None:
            self._free(held, was_made=was_made)

    def promise(self, sub_task_id: str, reservation: Reservation) -> None:
        """Keep room for a call of a subtask, as if it were reserved."""
        self.unpromise(sub_task_id)
        self._promised[sub_task_id] = self._hold(reservation)

    def unpromise(self, sub_task_id: str) -> None:
        """Give back the room that was kept for a subtask, where some was."""
        if (held := self._promised.pop(sub_task_id, None)) is not None:
            self._free(held, was_made=False)

    def quotas(self, reservation: Reservation) -> Iterator[Quota]:
        """The limits that a call counts against."""
        for _, quota, _ in self._limits(reservation.payer, reservation.model):
            yield quota

    def spend(self, payer: Payer, model: str, used: Amount) -> None:
        """A call has used so much."""
        now_s = self._clock()
        user = self._user(payer.user_id)
        for account in (*(() if user is None else (user,)), *self._others(payer, model)):
            account.usage = account.usage.spent(used, now_s=now_s)

    def learn(self, model: str, limits: ProviderLimits) -> None:
        """The endpoint of a model said so of its own limits."""
        self._providers[model] = self._providers.get(model, Provider()).told(limits, now_s=self._clock())

    def reserved(self, level: Level, id_: str) -> tuple[int, Amount]:
        """How many calls of somebody are counted, and what is reserved or kept for them."""
        mine = [held.amount for held in self._held() if _owner(level, held.reservation) == id_]
        return len(mine), sum(mine, NOTHING)

    def limited(self) -> Iterator[tuple[Level, str, CallAccount]]:
        """The accounts that have limits on what may be used in all, but those of users."""
        for id_, account in self.keys.items():
            yield "key", id_, account
        for id_, account in self.tasks.items():
            if account.quota != NO_LIMITS:
                yield "task", id_, account

    async def rebuild(self) -> None:
        """Count what the record has as reserved, and the calls of the last minute. To be called once, at first."""
        now_s = self._clock()
        self.counted = {each.id: Counted(each, now_s) for each in await self._books.open_calls()}
        recent = await self._books.recent(window_s=WINDOW_S + 1)
        for name, account in self._models.items():
            account.usage = self._usage("model", name, [each for each in recent if each.model == name], NOTHING)
        await self.read_keys()

    async def read_keys(self) -> None:
        """Which keys have limits, and what they have used."""
        standings = await self._books.limited_keys()
        for id_ in self.keys.keys() - standings.keys():
            del self.keys[id_]
        recent = await self._books.recent(window_s=WINDOW_S + 1) if standings.keys() - self.keys.keys() else ()
        for id_, standing in standings.items():
            account = self.keys.get(id_)
            if account is None:
                usage = self._usage("key", id_, [each for each in recent if each.key_id == id_], standing.used)
                self.keys[id_] = CallAccount(standing.quota, usage)
            else:
                account.quota, account.usage = standing.quota, replace(account.usage, used=standing.used)

    async def read_tasks(self, ids: Sequence[str]) -> None:
        """The budgets of these tasks, and what they have used."""
        standings = await self._books.tasks(ids) if ids else {}
        now_s = self._clock()
        for id_ in ids:
            standing = standings.get(id_, Standing(quota=NO_LIMITS))
            account = self.tasks.get(id_)
            if account is None:
                account = self.tasks[id_] = CallAccount(standing.quota, self._usage("task", id_, (), NOTHING), now_s)
            account.quota, account.usage = standing.quota, replace(account.usage, used=standing.used)

    async def read_again(self) -> None:
        """Keys and tasks anew: an admin, a retry or a tool may have changed what is known of them."""
        await self.read_keys()
        now_s = self._clock()
        busy = {held.reservation.payer.task_id for held in self._held()}
        for id_ in [id_ for id_, each in self.tasks.items() if id_ not in busy and now_s - each.seen_s > IDLE_S]:
            del self.tasks[id_]
        await self.read_tasks(list(self.tasks))

    def _held(self) -> Iterator[Counted]:
        yield from self.counted.values()
        yield from self._promised.values()

    def _hold(self, reservation: Reservation) -> Counted:
        held = Counted(reservation, self._clock())
        if (user := self._user(reservation.payer.user_id)) is not None:
            user.usage = user.usage.holding(held.amount)
        for account in self._others(reservation.payer, reservation.model):
            usage = account.usage.started(now_s=held.since_s)
            account.usage, account.seen_s = usage.holding(held.amount), held.since_s
        return held

    def _free(self, held: Counted, *, was_made: bool) -> None:
        payer, model = held.reservation.payer, held.reservation.model
        if (user := self._user(payer.user_id)) is not None:
            user.usage = user.usage.without(held.amount)
        for account in self._others(payer, model):
            usage = account.usage.freed() if was_made else account.usage.returned(started_s=held.since_s)
            account.usage = usage.without(held.amount)

    def _limits(self, payer: Payer, model: str) -> Iterator[tuple[Level, Quota, Usage]]:
        if (user := self._user(payer.user_id)) is not None:
            # Those count attempts, and let them start or not.
            yield "user", replace(user.quota, requests_per_min=None, max_concurrent=None), user.usage
        levels: tuple[tuple[Level, CallAccount | None], ...] = (
            ("key", self.keys.get(payer.key_id)),
            ("task", self.tasks.get(payer.task_id)),
            ("model", self._models.get(model)),
        )
        for level, account in levels:
            if account is not None:
                yield level, account.quota, account.usage

    def _others(self, payer: Payer, model: str) -> Iterator[CallAccount]:
        for account in (self.keys.get(payer.key_id), self.tasks.get(payer.task_id), self._models.get(model)):
            if account is not None:
                yield account

    def _usage(self, level: Level, id_: str, recent: Sequence[Recent], used: Amount) -> Usage:
        now_s = self._clock()
        calls, reserved = self.reserved(level, id_)
        return Usage(
            concurrent=calls,
            requests=Window.of([(now_s - each.made_s, each.calls) for each in recent], now_s=now_s),
            tokens=Window.of(
                [(now_s - each.settled_s, each.tokens) for each in recent if each.settled_s is not None], now_s=now_s
            ),
            used=used,
            reserved=reserved,
        )


def _weight(denied: Denied) -> tuple[bool, bool, float]:
    """A final denial weighs more than any other; that of a budget, which ends its subtask, more than all."""
    is_final = denied.retry_in_s is None
    return is_final, is_final and denied.level == "task", denied.retry_in_s or 0.0


def _owner(level: Level, reservation: Reservation) -> str:
    payer = reservation.payer
    return {
        "user": payer.user_id, "key": payer.key_id, "task": payer.task_id, "model": reservation.model,
    }.get(level, payer.sub_task_id)  # fmt: skip
