"""A token controller on a ledger held in memory, with a clock that a test moves: what unit and property tests share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from rayloom.actors.tokens import TokenController
from rayloom.dag.errors import Transient
from rayloom.dag.limits import is_limited
from rayloom.dag.model import Denied, Payer, Reservation
from rayloom.dag.token_port import Quota
from rayloom.db.quotas import Standing
from tests.fakes.memory_ledger import MemoryLedger


def identity(number: int) -> str:
    """The id of somebody."""
    return str(UUID(int=number))


ANN, TASK, KEY, SUBTASK = identity(1), identity(2), identity(3), identity(4)
PAYER = Payer(user_id=ANN, key_id=KEY, task_id=TASK, sub_task_id=SUBTASK, attempt=1)


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Users:
    """The record of users, in which what was used is what the ledger says."""

    def __init__(self, ledger: MemoryLedger, quotas: dict[str, Quota]) -> None:
        self._ledger, self.quotas = ledger, quotas
        self.away = False

    async def limited(self) -> Mapping[str, Quota]:
        return {user: quota for user, quota in self.quotas.items() if is_limited(quota)}

    async def quota(self, user_id: str) -> Quota:
        return self.quotas.get(user_id, Quota())

    async def write(self, user_id: str, quota: Quota) -> str:
        self.quotas[user_id] = quota
        return user_id

    async def leased(self, users: Sequence[str]) -> Mapping[str, frozenset[str]]:
        return {}

    async def standings(self, users: Sequence[str], *, window_s: float) -> Mapping[str, Standing]:
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "away")
        return {user: Standing(used=self._ledger.used("user", user)) for user in users}


class Controlled:
    """A controller, its ledger and its clock."""

    def __init__(self, quota: Quota | None = None, *, models: Mapping[str, Quota] | None = None) -> None:
        self.clock = Clock()
        self.ledger = MemoryLedger(self.clock)
        self.users = Users(self.ledger, {} if quota is None else {ANN: quota})
        self._models = models
        self._next = 100
        self.controller = self.anew()

    def anew(self) -> TokenController:
        """Another life of the controller."""
        self.controller = TokenController(self.users, self.ledger, self.ledger, models=self._models, clock=self.clock)
        return self.controller

    def ask(self, tokens: int, *, cost_usd: float = 0.0, payer: Payer = PAYER, model: str = "m") -> Reservation:
        self._next += 1
        return Reservation(
            id=identity(self._next),
            payer=payer,
            model=model,
            purpose="reason",
            tokens=tokens,
            cost_usd=cost_usd,
            lease_s=60,
        )

    async def reserve(self, tokens: int, *, payer: Payer = PAYER, model: str = "m") -> Reservation | Denied:
        reservation = self.ask(tokens, payer=payer, model=model)
        return await self.controller.reserve(reservation) or reservation
