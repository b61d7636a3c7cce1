"""What time alone brings about: back-offs, deadlines, the leases of the dead, attempts that nobody wants any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.flight import Flight, never_started, unreadable
from rayloom.actors.letters import LetterKeeper
from rayloom.actors.reaper import LOST_WORKER_GRACE_S, SILENT_WORKER_GRACE_S, Reaper
from rayloom.actors.settings import EngineSettings
from rayloom.dag.errors import Transient
from rayloom.dag.outcome import Outcome
from rayloom.db import attempts, leases, task_moves
from rayloom.db.attempts import Claimed
from rayloom.db.engine import Line
from rayloom.db.incarnations import begin_incarnation, end_incarnation
from rayloom.db.queue import make_redis
from rayloom.db.settings import RedisSettings
from tests.fakes.hand_lane import HandLane
from tests.fakes.memory_queue import MemoryQueue
from tests.integration.db.spine import ASKS, CONTINUE, Spine


@dataclass
class Watch:
    """A reaper with what it looks after."""

    spine: Spine
    lane: HandLane
    queue: MemoryQueue
    backlog: Backlog
    flight: Flight
    commits: Commits
    reaper: Reaper

    def fly(self, *claimed: Claimed) -> None:
        """These attempts are in flight."""
        for one in claimed:
            self.flight.start(one, self.backlog.shape(one.shape), registry_version=0)

    def stops(self) -> dict[str, list[bool]]:
        """How each attempt in flight was asked to stop, by its key."""
        return {held.order.key: held.stops for held in self.lane.held.values()}

    async def queued(self) -> set[str]:
        """The ids that the queue holds."""
        waiting = (await self.queue.pop({})).waiting
        return {item.sub_task_id for item in (await self.queue.pop(waiting)).items}


@pytest.fixture
async def watch(spine: Spine, servers: tuple[str, str]) -> AsyncIterator[Watch]:
    lane, queue = HandLane(), MemoryQueue()
    backlog = Backlog(spine.engine, queue)
    ignored: Callable[[object, Outcome], None] = lambda _flying, _outcome: None  # noqa: E731
    flight = Flight(lane, ignored)
    settings = EngineSettings(sweep_s=3600)
    commits = Commits(Line(spine.engine), backlog, settings)
    redis = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    letters = LetterKeeper(spine.engine, redis, retention_s=settings.dead_letter_retention_s)
    reaper = Reaper(spine.engine, backlog, flight, commits, letters, settings)
    yield Watch(spine, lane, queue, backlog, flight, commits, reaper)
    await redis.aclose()


async def test_back_offs_that_are_over_are_queued(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"soon": [], "later": []})
    claimed = await spine.claim(made.task_id)
    await spine.fail(claimed["soon"], retry_in_s=0)
    await spine.fail(claimed["later"], retry_in_s=3600)
    await watch.reaper.requeue()
    assert await watch.queued() == {claimed["soon"].sub_task_id}
    assert watch.queue.told == [str(made.task_id)]


async def test_a_task_that_is_overdue_fails_and_what_runs_of_it_is_stopped(spine: Spine, watch: Watch) -> None:
    late = await spine.submit({"a": [], "b": ["a"]}, deadline_s=0.000001)
    early = await spine.submit({"c": []}, deadline_s=3600.0)
    watch.fly(*(await spine.claim(late.task_id)).values(), *(await spine.claim(early.task_id)).values())
    await watch.reaper.expire()
    task = await spine.task(late.task_id)
    assert (task["status"], task["error"]["code"], task["error"]["class"]) == ("FAILED", "DEADLINE_EXCEEDED", "user")
    assert watch.stops() == {"a": [False], "c": []}
    assert (await spine.task(early.task_id))["status"] == "PROCESSING"
    assert watch.queue.told == [str(late.task_id)]


async def test_the_leases_of_the_dead_are_queued_again(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"a": [], "b": []})
    await spine.claim(made.task_id, "a")
    await watch.reaper.recover()
    assert await watch.queued() == set()
    await end_incarnation(spine.engine, spine.incarnation)
    await watch.reaper.recover()
    assert await watch.queued() == {(await spine.ids(made.task_id))["a"]}


async def test_attempts_that_nobody_wants_any_more_are_stopped(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"kept": [], "ended": [], "slow": [], "young": []})
    gone = await spine.submit({"gone": []})
    claimed = await spine.claim(made.task_id)
    watch.fly(*claimed.values(), *(await spine.claim(gone.task_id)).values())
    await task_moves.end_task(spine.engine, gone.task_id, status="CANCELLED", error=None, reason="no more")
    await spine.succeed(claimed["ended"])
    for key, over_s in (("slow", LOST_WORKER_GRACE_S + 1), ("young", LOST_WORKER_GRACE_S - 5)):
        await spine.rows(
            "UPDATE sub_tasks SET worker_id = 'w', started_at = now() - make_interval(secs => timeout_s + $2) "
                "WHERE id = $1::uuid",
            claimed[key].sub_task_id, over_s,
        )  # fmt: skip
    for _ in range(2):
        await watch.reaper.stop_stale(spine.incarnation)
    assert watch.stops() == {"kept": [], "ended": [False], "slow": [True], "young": [], "gone": [False]}
    assert [flying.claimed.key for flying in watch.flight if flying.overran] == ["slow"]


async def test_one_beat_does_all_that_is_due(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"due": [], "forgotten": []})
    await spine.fail((await spine.claim(made.task_id, "due"))["due"], retry_in_s=0)
    assert await watch.reaper.beat(spine.incarnation)
    assert await watch.queued() == set((await spine.ids(made.task_id)).values())
    # The next sweep is not due yet: what the queue loses now it learns later.
    assert await watch.reaper.beat(spine.incarnation)
    assert await watch.queued() == set()


async def test_a_redis_that_has_come_back_is_not_kept_waiting_for_the_next_sweep(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"a": []})
    watch.queue.away = True
    assert await watch.reaper.beat(spine.incarnation)
    watch.queue.away = False
    assert await watch.queued() == set()
    await watch.backlog.pop({})
    assert await watch.reaper.beat(spine.incarnation)
    assert await watch.queued() == set((await spine.ids(made.task_id)).values())


async def test_a_heart_whose_life_was_ended_hears_of_it(spine: Spine, watch: Watch) -> None:
    await begin_incarnation(spine.engine, spine.user_id, actor="a test", exclusive=True)
    assert not await watch.reaper.beat(spine.incarnation)


async def test_leases_that_never_reached_us_are_taken_back_at_the_second_look(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"flies": [], "ended": [], "ran": [], "handed": [], "done": []})
    claimed = await spine.claim(made.task_id, "flies", "ended", "ran", "done")
    claimed |= await spine.claim(made.task_id, "handed", running=False)
    watch.fly(claimed["flies"])
    ended = claimed["ended"]
    watch.commits.add(never_started(ended, watch.backlog.shape(ended.shape)), unreadable("torn"))
    await watch.reaper.reclaim(spine.incarnation)
    assert await watch.queued() == set()
    # What was only on its way at the first look is no orphan at the second.
    await spine.succeed(claimed["done"])
    await watch.reaper.reclaim(spine.incarnation)
    assert await watch.queued() == {claimed["ran"].sub_task_id, claimed["handed"].sub_task_id}
    assert await spine.statuses(made.task_id) == {
        "flies": "RUNNING", "ended": "RUNNING", "ran": "QUEUED", "handed": "QUEUED", "done": "COMPLETED",
    }  # fmt: skip
    again = await spine.claim(made.task_id, "ran", "handed")
    assert {one.attempt for one in again.values()} == {2}
    assert again["ran"].retry_count == 0
    await spine.succeed(claimed["flies"], claimed["ended"], *again.values())


async def test_what_was_unclaimed_and_is_claimed_again_is_no_orphan(
    spine: Spine, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(_engine: AsyncEngine, _incarnation: UUID) -> frozenset[tuple[str, int]]:
        raise Transient("DATABASE_UNAVAILABLE", "the database did not answer")

    made = await spine.submit({"a": []})

    async def claimed_and_not_handed_over_yet() -> tuple[str, int]:
        one = (await spine.claim(made.task_id, running=False))["a"]
        assert one.attempt == 1
        await watch.reaper.reclaim(spine.incarnation)
        return one.sub_task_id, one.attempt

    async def unclaim(claim: tuple[str, int]) -> None:
        watch.flight.unclaimed.add(claim)
        await leases.unclaim(spine.engine, [claim], incarnation=spine.incarnation)

    claim = await claimed_and_not_handed_over_yet()
    await unclaim(claim)
    # A look that fails forgets nothing.
    monkeypatch.setattr(leases, "leases_of", refuses)
    with pytest.raises(Transient):
        await watch.reaper.reclaim(spine.incarnation)
    monkeypatch.undo()
    await claimed_and_not_handed_over_yet()
    # Marked before a look, and done after it.
    watch.flight.unclaimed.add(claim)
    await watch.reaper.reclaim(spine.incarnation)
    await leases.unclaim(spine.engine, [claim], incarnation=spine.incarnation)
    await claimed_and_not_handed_over_yet()
    # Marked and claimed again while a look waits for its turn.
    leases_of = leases.leases_of

    async def late(engine: AsyncEngine, incarnation: UUID) -> frozenset[tuple[str, int]]:
        await unclaim(claim)
        await spine.claim(made.task_id, running=False)
        return await leases_of(engine, incarnation)

    monkeypatch.setattr(leases, "leases_of", late)
    await watch.reaper.reclaim(spine.incarnation)
    monkeypatch.undo()
    assert await watch.queued() == set()
    # It stays so, and nobody knows of it.
    for _ in range(2):
        await watch.reaper.reclaim(spine.incarnation)
    assert await watch.queued() == {claim[0]}


async def test_an_attempt_of_which_nobody_has_said_anything_is_stopped_much_later(spine: Spine, watch: Watch) -> None:
    made = await spine.submit({"waits": [], "silent": [], "demand": [], "runs": []})
    claimed = await spine.claim(made.task_id, "waits", "silent", "runs")
    claimed |= await spine.claim(made.task_id, "demand", running=False)
    await attempts.report_phase(spine.engine, claimed["runs"].sub_task_id, 1, "EXECUTING", "w", "r")
    for key, over_s in (("waits", SILENT_WORKER_GRACE_S - 5), ("silent", SILENT_WORKER_GRACE_S + 1), ("runs", 86400.0)):
        await spine.rows(
            "UPDATE sub_tasks SET started_at = now() - make_interval(secs => timeout_s + $2) WHERE id = $1::uuid",
            claimed[key].sub_task_id, over_s,
        )  # fmt: skip
    watch.fly(*claimed.values())
    await watch.reaper.stop_stale(spine.incarnation)
    # Only asked to stop: if it waits in Ray after all, no retry is spent.
    assert watch.stops() == {"waits": [], "silent": [False], "demand": [], "runs": [True]}
    assert [flying.claimed.key for flying in watch.flight if flying.overran] == ["runs"]
    await spine.succeed(*claimed.values())


async def test_what_nobody_approves_is_rejected_in_time(spine: Spine, watch: Watch) -> None:
    asks = await spine.submit({"a": [], "b": ["a"]}, {"a": ASKS | CONTINUE})
    plan = await spine.submit({"c": []}, require_approval=True)
    await watch.reaper.expire_approvals()
    assert watch.queue.told == []
    week_s = 7 * 86_400
    await spine.rows("UPDATE sub_tasks SET held_at = held_at - make_interval(secs => $1)", week_s)
    await spine.rows("UPDATE tasks SET held_at = held_at - make_interval(secs => $1)", week_s)
    await watch.reaper.expire_approvals()
    assert await spine.statuses(asks.task_id) == {"a": "BLOCKED", "b": "QUEUED"}
    assert await watch.queued() == {(await spine.ids(asks.task_id))["b"]}
    assert (await spine.task(plan.task_id))["status"] == "CANCELLED"
    assert sorted(watch.queue.told) == sorted([str(asks.task_id), str(plan.task_id)])
