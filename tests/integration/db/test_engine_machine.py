"""The engine's statements in any order: schedulers that claim, die and come back, outcomes that come late or twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Stale
from rayloom.dag.plan import subtasks_of
from rayloom.dag.states import SUBTASK_FINAL, TASK_FINAL
from rayloom.db import approvals, attempts, growth, leases, retries, task_moves
from rayloom.db.attempts import Claimed
from rayloom.db.engine import make_engine
from rayloom.db.growth import GrowingTask
from rayloom.db.incarnations import begin_incarnation, dead_with_leases, end_incarnation
from rayloom.db.settings import DatabaseSettings
from tests.integration.db.spine import (
    ASKS,
    BROKEN,
    CONTINUE,
    FALLBACK,
    Edges,
    Policies,
    Spine,
    default,
    outcome,
)


@st.composite
def plans(draw: st.DrawFn) -> Edges:
    """A small plan of any shape, or a chain."""
    size = draw(st.integers(1, 7))
    if draw(st.booleans()):
        return {f"s{n}": [f"s{n - 1}"] if n else [] for n in range(size)}
    return {
        f"s{n}": [f"s{k}" for k in draw(st.sets(st.integers(0, n - 1), max_size=3))] if n else [] for n in range(size)
    }


POLICIES = st.one_of(
    st.just({}), st.just({}), st.just(CONTINUE), st.just(default({"n": 1})), st.just(FALLBACK), st.just(ASKS),
    st.just(CONTINUE | ASKS),
)  # fmt: skip


@st.composite
def policies(draw: st.DrawFn) -> Policies:
    """What subtasks of any plan say of failures and approval."""
    return {f"s{n}": draw(POLICIES) for n in range(7)}


FREE = (
    "SELECT id FROM sub_tasks WHERE user_id = $1 AND status = 'QUEUED' AND incarnation IS NULL "
    "AND EXISTS (SELECT FROM schedulers WHERE incarnation = $2 AND ended_at IS NULL)"
)
STILL_BLOCKED = (
    "SELECT l.subtask FROM dead_letters l JOIN tasks t ON t.id = l.task_id "
    "WHERE l.user_id = $1 AND l.status = 'open' AND l.settled_at IS NULL AND t.status = 'FAILED'"
)
ENDS = st.sampled_from(["good", "good", "again", "spent", "turn", "lost"])


class Engine(RuleBasedStateMachine):
    """One user's tasks and two schedulers, of which either may die at any moment."""

    make_spine: Callable[[], Coroutine[Any, Any, Spine]]
    attempts = Bundle("attempts")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.spine = self._do(type(self).make_spine())
        self.lives: list[UUID] = []
        self.tasks: list[UUID] = []
        self.final: dict[str, tuple[str, int, str]] = {}
        self.growths: list[tuple[UUID, GrowingTask]] = []

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(plan=plans(), said=policies(), held=st.booleans(), replans=st.integers(0, 2))
    def two_schedulers_and_a_task(self, plan: Edges, said: Policies, held: bool, replans: int) -> None:
        self.lives = [self._born(name) for name in "ab"]
        self.submit(plan, said, held, replans)

    def _born(self, name: str) -> UUID:
        life = uuid7()
        self._do(begin_incarnation(self.spine.engine, life, actor=f"{self.spine.user_id} {name}", exclusive=False))
        return life

    @precondition(lambda self: len(self.tasks) < 3)
    @rule(plan=plans(), said=policies(), held=st.booleans(), replans=st.integers(0, 2))
    def another_task(self, plan: Edges, said: Policies, held: bool, replans: int) -> None:
        self.submit(plan, said, held, replans)

    def submit(self, plan: Edges, said: Policies, held: bool, replans: int) -> None:
        said = {key: policy for key, policy in said.items() if key in plan}
        self.tasks.append(self._do(self.spine.submit(plan, said, require_approval=held)).task_id)
        self._do(self.spine.may_grow(self.tasks[-1], replans))

    @precondition(lambda self: len(self.tasks) < 3)
    @rule(plan=plans(), said=policies(), who=st.integers(0, 1))
    def a_plan_begins(self, plan: Edges, said: Policies, who: int) -> None:
        said = {key: policy for key, policy in said.items() if key in plan}
        begun = self._do(self.spine.begin(plan, said, incarnation=self.lives[who]))
        self.tasks.append(begun)

    def _ids(self) -> list[str]:
        """All subtasks, in an order that is the same in every run: hypothesis replays what it draws from."""
        sql = "SELECT id FROM sub_tasks WHERE user_id = $1 ORDER BY array_position($2::uuid[], parent_id), key"
        return [str(row["id"]) for row in self._do(self.spine.rows(sql, self.spine.user_id, self.tasks))]

    def _in_order(self, claimed: Iterable[Claimed]) -> list[Claimed]:
        ids = self._ids()
        return sorted(claimed, key=lambda one: ids.index(one.sub_task_id))

    def _is_current(self, claimed: Claimed) -> bool:
        sql = "SELECT 1 FROM sub_tasks WHERE id = $1::uuid AND attempt = $2"
        return bool(self._do(self.spine.rows(sql, claimed.sub_task_id, claimed.attempt)))

    @rule(target=attempts, who=st.integers(0, 1), running=st.booleans(), data=st.data())
    def claim(self, who: int, running: bool, data: st.DataObject) -> Any:
        # Whatever a stale hint may name, not only what is queued.
        ids = self._ids()
        some = st.lists(st.sampled_from(ids), min_size=1, max_size=3, unique=True)
        items = [(id_, running) for id_ in data.draw(st.just(ids) | some)]
        free = self._do(self.spine.rows(FREE, self.spine.user_id, self.lives[who]))
        claimed = self._do(attempts.claim(self.spine.engine, items, incarnation=self.lives[who]))
        asked = {id_ for id_, _ in items}
        assert {one.sub_task_id for one in claimed} == asked & {str(row["id"]) for row in free}
        return multiple(*self._in_order(claimed))

    @rule(claimed=attempts)
    def begin(self, claimed: Claimed) -> None:
        begun = self._do(attempts.begin(self.spine.engine, claimed.sub_task_id, claimed.attempt, "w", "r"))
        assert not begun or self._is_current(claimed)

    @rule(claimed=attempts, phase=st.sampled_from(["PREPARE_ENV", "EXECUTING", "POST_PROCESS"]))
    def tell_phase(self, claimed: Claimed, phase: str) -> None:
        told = self._do(attempts.report_phase(self.spine.engine, claimed.sub_task_id, claimed.attempt, phase, "w", "r"))
        assert not told or self._is_current(claimed)

    @rule(ended=st.lists(st.tuples(attempts, ENDS), min_size=1, max_size=5))
    def end_attempts(self, ended: list[tuple[Claimed, str]]) -> None:
        """Outcomes of any attempts that there ever were, current ones and others, in one batch."""
        endings, current = [], {claimed.sub_task_id for claimed, _ in ended if self._is_current(claimed)}
        for claimed, how in ended:
            if how == "good":
                endings.append(self.spine.ending(claimed, outcome({"attempt": claimed.attempt})))
            elif how == "lost":
                lost = outcome(error=BROKEN, verdict="lost", worker_id="")
                endings.append(self.spine.ending(claimed, lost, retry_in_s=0, spends=False))
            else:
                wait = None if how == "spent" else 0.0
                ending = self.spine.ending(claimed, outcome(error=BROKEN), retry_in_s=wait)
                endings.append(replace(ending, use_fallback=how == "turn"))
        committed = self._do(attempts.complete(self.spine.engine, endings))
        assert committed.refused == ()
        assert committed.accepted <= current

    @rule(target=attempts, claimed=attempts)
    def lose_and_claim_again(self, claimed: Claimed) -> Any:
        """The way to two attempts of one subtask, of which the older may still be heard of."""
        self.end_attempts([(claimed, "lost")])
        self.time_passes()
        items = [(claimed.sub_task_id, True)]
        return multiple(*self._do(attempts.claim(self.spine.engine, items, incarnation=self.lives[0])))

    @rule(given=st.lists(attempts, min_size=1, max_size=3))
    def release(self, given: list[Claimed]) -> None:
        self._do(leases.release(self.spine.engine, [(one.sub_task_id, one.attempt) for one in given]))

    @rule(given=st.lists(consumes(attempts), min_size=1, max_size=3), who=st.integers(0, 1))
    def unclaim(self, given: list[Claimed], who: int) -> None:
        """What nobody was ever given is taken back; nobody can tell its end any more."""
        claims = [(one.sub_task_id, one.attempt) for one in given]
        self._do(leases.unclaim(self.spine.engine, claims, incarnation=self.lives[who]))

    @rule()
    def time_passes(self) -> None:
        self._do(leases.requeue_due(self.spine.engine))

    @rule(who=st.integers(0, 1))
    def a_scheduler_dies(self, who: int) -> None:
        self._do(end_incarnation(self.spine.engine, self.lives[who]))

    @rule(limit=st.sampled_from([1, 1000]))
    def somebody_recovers(self, limit: int) -> None:
        dead = self._do(dead_with_leases(self.spine.engine))
        if dead:
            self._do(leases.recover(self.spine.engine, dead, limit=limit))

    @rule(who=st.integers(0, 1))
    def a_scheduler_starts(self, who: int) -> None:
        self.lives[who] = self._born("ab"[who])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.tasks))
        self._do(task_moves.end_task(self.spine.engine, task_id, status="CANCELLED", error=None, reason="no more"))

    @rule(yes=st.booleans(), data=st.data())
    def decide(self, yes: bool, data: st.DataObject) -> None:
        """Somebody approves or rejects all that waits, or one subtask, which may not wait (any more) at all."""
        task_id = data.draw(st.sampled_from(self.tasks))
        before = self._do(self.spine.statuses(task_id))
        is_plan = self._do(self.spine.task(task_id))["status"] == "READY"
        subtask = data.draw(st.none() | st.sampled_from(sorted(before)))
        ask = approvals.approve if yes else approvals.reject
        decided = self._do(ask(self.spine.engine, task_id, subtask=subtask, reason="so be it"))
        waited = {key for key in before if before[key] == "AWAITING_APPROVAL" and subtask in (None, key)}
        assert set(decided.subtasks) == waited
        assert decided.plan == (is_plan and subtask is None)
        assert (decided.refused_status is None) == bool(waited or decided.plan)
        now = self._do(self.spine.statuses(task_id))
        assert {now[key] for key in waited} <= {"QUEUED" if yes else "BLOCKED"}

    @rule(limit=st.sampled_from([1, 1000]))
    def approvals_expire(self, limit: int) -> None:
        self._do(approvals.expire(self.spine.engine, ttl_s=0, limit=limit))

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """Whatever a stale list may name, not only what is BLOCKED."""
        ids = data.draw(st.lists(st.sampled_from(self._ids()), min_size=1, max_size=3))
        named = [UUID(id_) for id_ in ids]
        committed = self._do(retries.retry_letters(self.spine.engine, named, reason="somebody asked"))
        assert {item.sub_task_id for item in committed.queued} <= set(ids)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        id_ = UUID(data.draw(st.sampled_from(self._ids())))
        if self._do(retries.discard_letters(self.spine.engine, [id_])):
            committed = self._do(retries.retry_letters(self.spine.engine, [id_], reason="somebody asked"))
            assert not committed.queued

    @rule(who=st.integers(0, 1), takes_over=st.booleans(), partial=st.booleans())
    def take_growths(self, who: int, takes_over: bool, partial: bool) -> None:
        dead = self._do(dead_with_leases(self.spine.engine)) if takes_over else ()
        taken = self._do(self.spine.growing(dead=dead, incarnation=self.lives[who], partial=partial))
        self.growths += [(self.lives[who], task) for task in taken]

    @precondition(lambda self: self.growths)
    @rule(how=st.sampled_from(["last", "more", "nothing"]), data=st.data())
    def grow(self, how: str, data: st.DataObject) -> None:
        """Whoever has taken a growth, now or long ago, adds to the plan that it knows, or lets it be.

        A plan that is not whole may become that without some of what has begun, or never does.
        """
        life, task = data.draw(st.sampled_from(self.growths))
        before, partial = self._do(self.spine.task(task.task_id)), "partial" in task.meta
        is_its_own = before["growth"] == "under_way" and before["incarnation"] == life
        is_its_own = is_its_own and partial == ("partial" in before["plan_meta"])
        if how == "nothing":
            self._let_be(task, life)
            return
        keys = [str(each["id"]) for each in subtasks_of(task.plan)]
        dropped: frozenset[str] = frozenset()
        if partial and how == "last":
            dropped = self._below(task, data.draw(st.sets(st.sampled_from(keys), max_size=2)))
        new = [f"s{len(keys) + n}" for n in range(data.draw(st.integers(0 if partial else 1, 3)))]
        left = [key for key in keys if key not in dropped]
        some = st.lists(st.sampled_from(left), max_size=2, unique=True) if left else st.just([])
        edges = {key: [*data.draw(some), *new[n - 1 : n]] for n, key in enumerate(new)}
        work = self.spine.extend(
            task, edges, incarnation=life, is_last=how == "last", goes_around=not partial, dropped=dropped
        )
        try:
            self._do(work)
        except Stale:
            known = before["plan"]["subtasks"]
            assert not is_its_own or len(known) != len(keys)
        else:
            assert is_its_own

    def _let_be(self, task: GrowingTask, life: UUID) -> None:
        if "partial" not in task.meta:
            self._do(growth.end_growth(self.spine.engine, task.task_id, life, spent=True))
            return
        with suppress(Stale):
            self._do(
                task_moves.end_task(
                    self.spine.engine, task.task_id, status="FAILED", error=BROKEN, reason="no plan", splitter=life
                )
            )

    @staticmethod
    def _below(task: GrowingTask, keys: Iterable[str]) -> frozenset[str]:
        """These, and all that depends on them."""
        found = set(keys)
        for _ in subtasks_of(task.plan):
            found |= {
                str(each["id"])
                for each in subtasks_of(task.plan)
                if found.intersection(each.get("depends_on", ()))  # type: ignore[arg-type]
            }
        return frozenset(found)

    @invariant()
    def the_record_keeps_its_rules(self) -> None:
        self._do(self.spine.audit())

    @invariant()
    def what_is_final_stays(self) -> None:
        rows = self._do(
            self.spine.rows(
                "SELECT id, status, attempt, output_result::text AS output FROM sub_tasks WHERE user_id = $1 "
                "UNION ALL SELECT id, status, 0, result::text FROM tasks WHERE user_id = $1",
                self.spine.user_id,
            )
        )
        now = {str(row["id"]): (row["status"], row["attempt"], row["output"]) for row in rows}
        for id_, was in self.final.items():
            assert now[id_] == was
        self.final = {id_: row for id_, row in now.items() if row[0] in SUBTASK_FINAL | TASK_FINAL}

    def teardown(self) -> None:
        """Failures stop: now everything comes to an end."""
        try:
            self._finish()
        finally:
            self._do(self.spine.put_away())
            self._do(self.spine.engine.dispose())
            self.runner.close()

    def _finish(self) -> None:
        for life in self.lives:
            self._do(end_incarnation(self.spine.engine, life))
        self.somebody_recovers(1000)
        life = self._born("last")
        self._do(retries.retry_letters(self.spine.engine, [UUID(id_) for id_ in self._ids()], reason="at last"))
        for _ in range(200):
            self.time_passes()
            approved = [
                self._do(approvals.approve(self.spine.engine, task_id, subtask=None, reason="the rest"))
                for task_id in self.tasks
            ]
            items = [(id_, True) for id_ in self._ids()]
            claimed = self._do(attempts.claim(self.spine.engine, items, incarnation=life))
            dead = self._do(dead_with_leases(self.spine.engine))
            growing = [
                task
                for partial in (False, True)
                for task in self._do(self.spine.growing(dead=dead, incarnation=life, partial=partial))
            ]
            for task in growing:
                self._let_be(task, life)
            # Below a plan that was approved just now there may be subtasks that want it, too.
            if not claimed and not growing and not any(decided.plan or decided.subtasks for decided in approved):
                break
            self._do(self.spine.succeed(*claimed))
        self._do(self.spine.audit())
        rows = self._do(self.spine.rows("SELECT status FROM tasks WHERE user_id = $1", self.spine.user_id))
        assert {row["status"] for row in rows} <= {"COMPLETED", "FAILED", "CANCELLED"}
        # What can be retried completes, once failures stop.
        blocked = self._do(self.spine.rows(STILL_BLOCKED, self.spine.user_id))
        assert not blocked
        left = self._do(
            self.spine.rows(
                "SELECT key, status FROM sub_tasks WHERE user_id = $1 "
                "AND (finished_at IS NULL OR incarnation IS NOT NULL)",
                self.spine.user_id,
            )
        )
        assert not left


@pytest.fixture
def machine(database: DatabaseSettings) -> type[Engine]:
    """The machine, on a database of its own."""

    async def make_spine() -> Spine:
        engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=2, name="test")
        return await Spine.of_new_user(engine)

    return type("EngineHere", (Engine,), {"make_spine": staticmethod(make_spine)})


BRIEF = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_engine_keeps_its_rules_in_any_order_of_things(machine: type[Engine]) -> None:
    run_state_machine_as_test(machine, settings=BRIEF)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_engine_keeps_its_rules_for_long(machine: type[Engine]) -> None:
    run_state_machine_as_test(machine, settings=settings(BRIEF, max_examples=100, stateful_step_count=50))
