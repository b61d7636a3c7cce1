"""Whatever comes in whatever order, and whoever dies: no limit is passed, and the counts are those of the ledger."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rayloom.dag.amount import NANO, NOTHING, Amount
from rayloom.dag.errors import Transient
from rayloom.dag.model import ModelUse, Reservation
from rayloom.dag.reservations import LEASE_S
from rayloom.dag.token_port import Quota
from tests.fakes.controlled import ANN, KEY, PAYER, TASK, Controlled

DOLLARS = 1
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 60), st.integers(0, 60)),
        st.tuples(st.just("reserve again"), st.integers(0, 30)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.integers(0, 4)),
        st.tuples(st.just("settle again"), st.integers(0, 30)),
        st.tuples(st.just("renew"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(1, 70)),
        st.tuples(st.sampled_from(("reconcile", "restart", "lose answers", "find answers", "go away", "come back"))),
    ),
    max_size=60,
)


class Run:
    """What the callers know."""

    def __init__(self, limit: int, budget: int, at_once: int) -> None:
        self.limit, self.budget, self.at_once = limit, budget, at_once
        self.world = Controlled(Quota(max_tokens=limit), models={"m": Quota(max_concurrent=at_once)})
        self.world.ledger.budgets[TASK] = Quota(max_tokens=budget)
        self.world.ledger.key_quotas[KEY] = Quota(max_cost_usd=float(DOLLARS))
        self.asked: list[Reservation] = []
        self.granted: dict[str, Reservation] = {}
        self.settled: dict[str, ModelUse] = {}
        self.heard_at: dict[str, float] = {}
        self.late = NOTHING

    async def do(self, step: tuple[Any, ...]) -> None:
        """One step."""
        world = self.world
        match step:
            case ("reserve", tokens, cents):
                self.asked.append(world.ask(tokens, cost_usd=cents / 100, payer=replace(PAYER, sub_task_id="")))
                await self._reserve(self.asked[-1])
            case ("reserve again", place) if self.asked:
                await self._reserve(self.asked[place % len(self.asked)])
            case ("settle", place, quarters) if self.granted:
                reservation = list(self.granted.values())[place % len(self.granted)]
                used, cost_usd = reservation.tokens * quarters // 4, reservation.cost_usd * quarters / 4
                await self._settle(reservation, ModelUse(tokens_in=used, cost_usd=cost_usd))
            case ("settle again", place) if self.settled:
                id_ = list(self.settled)[place % len(self.settled)]
                await self._settle(next(each for each in self.asked if each.id == id_), self.settled[id_])
            case ("wait", seconds):
                world.clock.now_s += seconds
            case ("renew", place) if self.granted:
                reservation = list(self.granted.values())[place % len(self.granted)]
                with suppress(Transient):
                    await world.controller.renew(reservation)
                    self.heard_at[reservation.id] = world.clock.now_s
            case ("reconcile",):
                with suppress(Transient):
                    await world.controller.reconcile()
            case ("restart",):
                world.ledger.away = world.ledger.loses_answers = False
                await world.anew().reconcile()
            case ("lose answers",) | ("find answers",):
                world.ledger.loses_answers = step[0] == "lose answers"
            case ("go away",) | ("come back",):
                world.ledger.away = step[0] == "go away"

    async def _reserve(self, reservation: Reservation) -> None:
        with suppress(Transient):
            denied = await self.world.controller.reserve(reservation)
            if denied is None and reservation.id not in self.settled:
                self.granted[reservation.id] = reservation
                self.heard_at[reservation.id] = self.world.clock.now_s

    def _lives(self, id_: str) -> bool:
        """Whether it is not taken for dead."""
        row = self.world.ledger.rows.get(id_)
        # Of what is not in the ledger nobody is told that it was released.
        is_silent = self.world.clock.now_s - self.heard_at[id_] > LEASE_S
        return not is_silent if row is None else row.status == "reserved"

    async def _settle(self, reservation: Reservation, use: ModelUse) -> None:
        if reservation.id in self.granted and not self._lives(reservation.id):
            # Its caller was taken for dead: what it used all the same is over whatever was granted meanwhile.
            self.late += Amount.of(use.tokens, use.cost_usd)
        self.settled[reservation.id] = use
        self.granted.pop(reservation.id, None)
        with suppress(Transient):
            await self.world.controller.settle(reservation, use)

    def check(self) -> None:
        """What was used, and what is granted and alive, is within every limit."""
        ledger = self.world.ledger
        alive = [each for id_, each in self.granted.items() if self._lives(id_)]
        granted = sum((Amount.of(each.tokens, each.cost_usd) for each in alive), NOTHING)
        taken = ledger.used("user", ANN) + granted - self.late
        assert taken.tokens <= min(self.limit, self.budget)
        assert taken.nano_usd <= DOLLARS * NANO
        assert len(alive) <= self.at_once

    async def end(self) -> None:
        """All callers end, or are dead for long: nothing is reserved, and what is counted is what the ledger has."""
        ledger = self.world.ledger
        ledger.loses_answers = ledger.away = False
        for place, reservation in enumerate(list(self.granted.values())):
            # Some are dead, others die before they hear that they are settled.
            ledger.loses_answers = place % 3 == 0
            if place % 3 < 2:
                await self._settle(reservation, ModelUse(tokens_in=1))
        ledger.loses_answers = False
        for id_, use in list(self.settled.items())[::2]:
            await self._settle(next(each for each in self.asked if each.id == id_), use)
        for _ in range(3):
            self.world.clock.now_s += 61
            for _ in range(2):
                await self.world.controller.reconcile()
                await asyncio.sleep(0.0)
        figures = await self.world.controller.figures()
        assert (figures.reserved_calls, figures.reserved_tokens) == (0, 0)
        assert {row.status for row in ledger.rows.values()} <= {"settled", "released"}
        assert {id_ for id_, row in ledger.rows.items() if row.status == "settled"} <= self.settled.keys()
        used = ledger.used("user", ANN)
        counted = {(each.level, each.limit): each.share for each in figures.shares}
        assert counted["user", "max_tokens"] == used.tokens / self.limit
        assert counted["key", "max_cost_usd"] == used.nano_usd / (DOLLARS * NANO)
        # Of a task of whom nothing was asked for long nothing is known any more.
        assert counted.get(("task", "max_tokens"), used.tokens / self.budget) == used.tokens / self.budget


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, limits=st.sampled_from(((80, 200, 6), (120, 90, 6), (400, 600, 100))))
def test_no_limit_is_passed_and_the_counts_are_those_of_the_ledger(
    steps: list[tuple[Any, ...]], limits: tuple[int, int, int]
) -> None:
    async def run() -> None:
        told = Run(*limits)
        await told.world.controller.reconcile()
        for step in steps:
            await told.do(step)
            told.check()
        await told.end()

    asyncio.run(run())
