"""The ledger of the calls of models, kept in memory: what the database does with it, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from rayloom.actors.call_accounts import amount_of
from rayloom.dag.amount import NOTHING, Amount
from rayloom.dag.errors import Transient, UserError
from rayloom.dag.model import ModelUse, Reservation
from rayloom.dag.token_port import Level, Quota, Share
from rayloom.db.alerts import Limit
from rayloom.db.ledger import Recent, Recorded, Released, Standing


@dataclass
class Row:
    """A call."""

    reservation: Reservation
    made_at: float
    expires_at: float
    status: str = "reserved"
    use: ModelUse = field(default_factory=ModelUse)
    settled_at: float | None = None


class MemoryLedger:
    """``LedgerPort`` and ``AlertBook``.

    ``away``: no answer. ``loses_answers``: it does what it is told, and says that it is away.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 1000.0) -> None:
        self.clock = clock
        self.rows: dict[str, Row] = {}
        self.budgets: dict[str, Quota] = {}
        self.tools: dict[str, int] = {}
        """Tokens of tasks that their tools told of."""
        self.key_quotas: dict[str, Quota] = {}
        self.alerts: dict[Limit, float] = {}
        """Of the limits that are nearly used up now."""
        self.alerted: list[tuple[Limit, float]] = []
        self.ended: set[str] = set()
        """Subtasks whose attempts have ended, and tasks that have."""
        self.is_ahead = False
        self.away = False
        self.loses_answers = False
        self.batches: list[int] = []
        self.compared: list[int] = []
        self.readings = 0

    async def reserve(self, reservations: Sequence[Reservation]) -> Mapping[str, str]:
        self._answer()
        self.batches.append(len(reservations))
        over = {}
        for each in reservations:
            row = self._row(each)
            if row.status == "reserved":
                row.reservation, row.expires_at = each, self.clock() + each.lease_s
            else:
                over[each.id] = row.status
        self._lose()
        return over

    async def settle(self, settlements: Sequence[tuple[Reservation, ModelUse]]) -> Mapping[str, Amount]:
        self._answer()
        news = {}
        for reservation, use in settlements:
            row = self._row(reservation)
            if row.status != "settled":
                news[reservation.id] = _amount(use) - _amount(row.use)
                row.status, row.use, row.settled_at = "settled", use, self.clock()
        self._lose()
        return news

    async def left(self, *, expired: bool, limit: int) -> Mapping[str, bool]:
        self._answer()
        open_ = {id_: row for id_, row in self.rows.items() if row.status == "reserved"}
        over = {id_ for id_, row in open_.items() if row.expires_at <= self.clock()}
        ended = {id_ for id_, row in open_.items() if row.reservation.payer.sub_task_id in self.ended}
        return {id_: id_ in over for id_ in [*(over if expired else ()), *ended][:limit]}

    async def release(self, ids: Sequence[str]) -> Mapping[str, Released]:
        self._answer()
        released = {}
        for id_ in ids:
            row = self.rows[id_]
            if row.status == "reserved":
                row.status, row.use, row.settled_at = "released", row.reservation.least, self.clock()
                released[id_] = Released(user_id=row.reservation.payer.user_id, used=_amount(row.use))
        self._lose()
        return released

    async def is_granted_ahead(self) -> bool:
        self._answer()
        return self.is_ahead

    async def grant_ahead(self, is_ahead: bool) -> None:
        self._answer()
        self.is_ahead = is_ahead

    async def open_calls(self) -> Sequence[Reservation]:
        self._answer()
        return [row.reservation for row in self.rows.values() if row.status == "reserved"]

    async def recorded(self, ids: Sequence[str]) -> Mapping[str, Recorded]:
        self._answer()
        self.compared.append(len(ids))
        found = {id_: self.rows[id_] for id_ in ids if id_ in self.rows}
        return {id_: Recorded(status=row.status, use=row.use) for id_, row in found.items()}

    async def recent(self, *, window_s: float) -> Sequence[Recent]:
        self._answer()
        now_s = self.clock()
        return [
            Recent(
                key_id=row.reservation.payer.key_id,
                model=row.reservation.model,
                made_s=int(now_s - row.made_at),
                settled_s=None if row.settled_at is None else int(now_s - row.settled_at),
                calls=1,
                tokens=row.use.tokens,
            )
            for row in self.rows.values()
            if row.settled_at is None or row.settled_at > now_s - window_s
        ]

    async def tasks(self, ids: Sequence[str]) -> Mapping[str, Standing]:
        self._answer()
        self.readings += 1
        for id_ in ids:
            UUID(id_)
        return {
            id_: Standing(quota=self.budgets[id_], used=self.used("task", id_) + Amount(tokens=self.tools.get(id_, 0)))
            for id_ in ids
            if id_ in self.budgets
        }

    async def limited_keys(self) -> Mapping[str, Standing]:
        self._answer()
        return {
            id_: Standing(quota=quota, used=self.used("key", id_))
            for id_, quota in self.key_quotas.items()
            if quota != Quota()
        }

    async def open_alerts(self) -> frozenset[Limit]:
        self._answer()
        return frozenset(self.alerts)

    async def alert(self, near: Sequence[Share]) -> frozenset[Limit]:
        self._answer()
        new = {(each.level, each.id, each.limit): each.share for each in near}
        new = {limit: share for limit, share in new.items() if limit not in self.alerts}
        self.alerts |= new
        self.alerted += new.items()
        return frozenset(new)

    async def alerts_over(self, limits: Collection[Limit]) -> None:
        self._answer()
        for limit in limits:
            del self.alerts[limit]

    async def alerts_of_ended(self, tasks: Collection[str]) -> frozenset[str]:
        self._answer()
        ended = frozenset(tasks) & self.ended
        await self.alerts_over([limit for limit in self.alerts if limit[1] in ended])
        return ended

    async def key_quota(self, key_id: str) -> Quota:
        self._answer()
        return self.key_quotas.get(key_id, Quota())

    async def write_key_quota(self, key_id: str, quota: Quota) -> str:
        self._answer()
        if key_id == "unknown":
            raise UserError("KEY_UNKNOWN", "there is none")
        self.key_quotas[key_id] = quota
        return key_id

    def used(self, level: Level, id_: str) -> Amount:
        """What somebody's settled calls used in all."""
        rows = [row for row in self.rows.values() if _owner(level, row.reservation) == id_]
        return sum((Amount.of(row.use.tokens, row.use.cost_usd) for row in rows), NOTHING)

    def reserved(self, level: Level, id_: str) -> Amount:
        """What is reserved for somebody."""
        rows = [row for row in self.rows.values() if _owner(level, row.reservation) == id_ and row.status == "reserved"]
        return sum((amount_of(row.reservation) for row in rows), NOTHING)

    def expire(self, id_: str) -> None:
        """Its caller is dead."""
        self.rows[id_].expires_at = self.clock()

    def _row(self, reservation: Reservation) -> Row:
        now_s = self.clock()
        return self.rows.setdefault(reservation.id, Row(reservation, now_s, now_s + reservation.lease_s))

    def _answer(self) -> None:
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "away")

    def _lose(self) -> None:
        if self.loses_answers:
            raise Transient("DATABASE_UNAVAILABLE", "the answer was lost")


def _amount(use: ModelUse) -> Amount:
    return Amount.of(use.tokens, use.cost_usd)


def _owner(level: Level, reservation: Reservation) -> str:
    payer = reservation.payer
    return {"user": payer.user_id, "key": payer.key_id, "task": payer.task_id, "model": reservation.model}[level]
