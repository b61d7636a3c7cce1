"""The whole scheduler on a real record, with attempts that end at once: with Redis, without it, and after deaths."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import orjson
import pytest
from pydantic import SecretStr

from rayloom.actors.nodes import ClusterView
from rayloom.actors.order import AttemptOrder
from rayloom.actors.pace import BUSY, Pace
from rayloom.actors.scheduler import Scheduler
from rayloom.actors.settings import EngineSettings, WebhookSettings, WorkerSettings
from rayloom.dag.breaker import BreakerView
from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import RegistryPort, ToolSnapshot
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.values import JsonObject
from rayloom.db import incarnations, leases, usage
from rayloom.db.cipher import Cipher
from rayloom.db.engine import dump
from rayloom.db.queue import ReadyQueue, make_redis
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.db.submit import Callback, NewTask, submit_task
from rayloom.tools.settings import ToolSettings
from tests.fakes.inline_lane import InlineLane, succeeded
from tests.fakes.scripted_tokens import ScriptedTokens
from tests.fakes.tools import tool
from tests.integration.db.spine import FALLBACK, NODES, Spine
from tests.unit.tools.web import web as serving

MASTER = SecretStr("master")
NO_REDIS = "redis://127.0.0.1:1/0"
NO_TOOLS = ToolSnapshot(version=1, tools={})
LAYERS: dict[str, list[str]] = {
    f"l{layer}n{n}": [f"l{layer - 1}n{k}" for k in range(4)] if layer else [] for layer in range(6) for n in range(4)
}
WIDE: dict[str, list[str]] = {
    f"l{layer}n{n}": [f"l{layer - 1}n{n}"] if layer else [] for layer in range(3) for n in range(2 * BUSY)
}


class Registry:
    """Tells what it knows once, and only while it ``speaks``; nobody is let through to look."""

    def __init__(self, tools: ToolSnapshot = NO_TOOLS) -> None:
        self._tools, self._told = tools, False
        self.speaks = asyncio.Event()
        self.speaks.set()

    async def changed(self, version: int) -> ToolSnapshot:
        await self.speaks.wait()
        if self._told:
            await asyncio.Event().wait()
        self._told = True
        return self._tools


class Parser:
    """Always plans with a tool that nobody has."""

    async def plan(self, request: PlanRequest) -> Planned:
        plan: JsonObject = {"subtasks": [{"id": "a", "type": "TOOL", "tool": "nothing"}]}
        return Planned(plan=plan, source="outline", notes=("said\0so",), language="en", parsed_s=0, split_s=0)

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        yield await self.plan(request)

    async def replan(self, request: ReplanRequest) -> Planned:
        raise AssertionError("nothing here grows")


async def _look() -> ClusterView:
    return ClusterView(nodes=NODES, types=NODES, total={"CPU": 4.0}, free={"CPU": 4.0})


async def look_without_autoscaler() -> ClusterView:
    return ClusterView(nodes=NODES, types=(), total={"CPU": 4.0}, free={"CPU": 4.0})


Running = Callable[..., Any]


@pytest.fixture(params=["with Redis", "without Redis"])
def redis(request: pytest.FixtureRequest, servers: tuple[str, str]) -> str:
    return servers[1] if request.param == "with Redis" else NO_REDIS


@pytest.fixture
async def running(database: DatabaseSettings, redis: str) -> AsyncIterator[Running]:
    """Schedulers of this database; each is closed with its block."""
    open_now, others = 0, set[asyncio.Task[Any]]()

    @asynccontextmanager
    async def run(
        lane: InlineLane, *, actor: str = "one", registry: Registry | None = None, look: Any = _look, **more: Any
    ) -> AsyncIterator[Scheduler]:
        settings = WorkerSettings(
            engine=EngineSettings(retry_initial_s=0.01, retry_max_s=0.02, heartbeat_s=0.2, sweep_s=1, **more),
            database=database,
            redis=RedisSettings(url=SecretStr(redis), pool_size=8),
            tools=ToolSettings(allow_addresses=("127.0.0.1/32",)),
            webhooks=WebhookSettings(secret_key=MASTER, source="http://here"),
        )
        knows = cast(RegistryPort, registry or Registry())
        scheduler = Scheduler(
            settings, lane=lane, registry=knows, tokens=ScriptedTokens(), parser=Parser(), look=look, actor=actor
        )
        nonlocal open_now, others
        others, open_now = others if open_now else asyncio.all_tasks(), open_now + 1
        await scheduler.start()
        try:
            yield scheduler
        finally:
            theirs, open_now = asyncio.all_tasks() - others, open_now - 1
            await scheduler.close()
            # What still ran would speak on through connections that are closed under it.
            assert open_now or not [task for task in theirs if not task.done()]

    yield run
    if redis != NO_REDIS:
        client = make_redis(RedisSettings(url=SecretStr(redis)), name="test")
        waiting = await ReadyQueue(client).waiting()
        await ReadyQueue(client).pop(dict.fromkeys(waiting, 1_000_000))
        await client.aclose()


async def until(seen: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is seen; fails after two minutes."""
    async with asyncio.timeout(120):
        while not await seen():  # noqa: ASYNC110 - another process changes what is looked at
            await asyncio.sleep(0.02)


async def _ended(spine: Spine, task_id: UUID) -> str:
    """Wait until a task has ended; its status."""

    async def ended() -> bool:
        return (await spine.task(task_id))["finished_at"] is not None

    await until(ended)
    return str((await spine.task(task_id))["status"])


async def test_a_plan_runs_to_its_end(spine: Spine, running: Running) -> None:
    lane = InlineLane()
    async with running(lane) as scheduler:
        made = await spine.submit(LAYERS)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"
        assert (await spine.task(made.task_id))["result"] == {f"l5n{n}": f"l5n{n}" for n in range(4)}
        assert len(lane.started) == len(LAYERS)
        health = await scheduler.health()
        assert (health["status"], health["in_flight"], health["uncommitted"]) == ("ok", 0, 0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a turn that started many, schedulers wait for half of their ends, however long that takes."""
    monkeypatch.setattr("rayloom.actors.scheduler.Pace", lambda: Pace(burst_s=3_600))


@pytest.mark.usefixtures("patient")
async def test_what_a_burst_frees_starts_when_half_of_it_has_ended(spine: Spine, running: Running) -> None:
    lane = InlineLane()
    async with running(lane) as scheduler:
        made = await spine.submit(WIDE)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"


@pytest.mark.usefixtures("patient")
async def test_nobody_waits_for_the_ends_of_what_is_not_started(spine: Spine, running: Running) -> None:
    shut = BreakerView(state="open", retry_at=None)
    tools = ToolSnapshot(version=1, tools={name: tool(name) for name in "tu"}, breakers={"t": shut})
    keys = "abcdefgh"
    async with running(InlineLane(), registry=Registry(tools)) as scheduler:
        made = await spine.submit({key: [] for key in keys}, {key: FALLBACK | {"max_retries": 0} for key in keys})
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"


async def test_what_is_claimed_too_early_spends_no_number_of_an_attempt(
    spine: Spine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, unclaimed, unclaim = InlineLane(), [], leases.unclaim

    async def listen(engine: Any, claims: Any, *, incarnation: UUID) -> Any:
        unclaimed.extend(claims)
        return await unclaim(engine, claims, incarnation=incarnation)

    monkeypatch.setattr(leases, "unclaim", listen)
    async with running(lane, look=look_without_autoscaler) as scheduler:
        quick = await spine.submit({f"n{n}": [] for n in range(400)})
        await scheduler.wake()
        assert await _ended(spine, quick.task_id) == "COMPLETED"
        # What that has earned is not theirs: most of what is claimed of it at once goes back.
        other = await spine.submit({f"n{n}": [] for n in range(100)})
        await scheduler.wake()
        assert await _ended(spine, other.task_id) == "COMPLETED"
        assert {order.attempt for order in lane.started} == {1}
        assert len(lane.started) == 500
        assert unclaimed


async def test_what_a_prompt_was_split_into_starts_at_once(
    spine: Spine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, beats = Scheduler._beat, 0

    async def only_once(scheduler: Scheduler, incarnation: UUID) -> bool:
        nonlocal beats
        beats += 1
        return await beat(scheduler, incarnation) if beats == 1 else await asyncio.Event().wait()

    # Each beat of its heart wakes it.
    monkeypatch.setattr(Scheduler, "_beat", only_once)
    tools = ToolSnapshot(version=1, tools={"nothing": tool("nothing")})
    async with running(InlineLane(), registry=Registry(tools)) as scheduler:

        async def stands() -> bool:
            return beats == 2

        await until(stands)
        new = NewTask(user_id=spine.user_id, title="a prompt", prompt="do nothing", priority=5)
        made = await submit_task(spine.engine, spine.blobs, new)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"
        # What PostgreSQL can't keep of how it was planned is not kept, and fails nothing.
        assert (await spine.task(made.task_id))["plan_meta"]["notes"] == ["said\N{REPLACEMENT CHARACTER}so"]


async def test_the_end_of_a_task_is_told_by_whoever_schedules(spine: Spine, running: Running) -> None:
    callback_secret = Cipher(MASTER).encrypt("whsec_" + base64.b64encode(bytes(32)).decode())
    async with serving() as web, running(InlineLane()) as one, running(InlineLane(), actor="two") as two:
        callback = Callback(url=web.answer("/hook"), secret=callback_secret)
        made = [await spine.submit({"a": []}, callback=callback) for _ in range(20)]
        for scheduler in (one, two):
            await scheduler.wake()

        async def told() -> bool:
            sql = "SELECT count(*) AS n FROM webhooks WHERE user_id = $1 AND status = 'delivered'"
            return bool((await spine.rows(sql, spine.user_id))[0]["n"] == len(made))

        await until(told)
        subjects = sorted(orjson.loads(asked.body)["subject"] for asked in web.asked)
        assert subjects == sorted(str(each.task_id) for each in made)


async def test_nothing_starts_before_it_has_asked_which_breakers_are_open(
    spine: Spine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayloom.actors.passing.KNOWN_S", 60.0)
    lane, registry = InlineLane(), Registry()
    registry.speaks.clear()
    made = await spine.submit({"a": []})
    async with running(lane, registry=registry) as scheduler:
        await asyncio.sleep(0.3)
        assert ((await scheduler.health())["status"], lane.started) == ("starting", [])
        registry.speaks.set()
        assert await _ended(spine, made.task_id) == "COMPLETED"


async def test_a_scheduler_with_nothing_to_do_does_nothing(spine: Spine, running: Running) -> None:
    async with running(InlineLane()) as scheduler:
        made = await spine.submit({"a": []})
        await scheduler.wake()
        await _ended(spine, made.task_id)
        before = int(str((await scheduler.health())["turns"]))
        await asyncio.sleep(1)
        # Some for its heartbeat, five a second; none in between.
        assert int(str((await scheduler.health())["turns"])) - before < 30


async def test_failures_are_tried_again_as_often_as_they_may(spine: Spine, running: Running) -> None:
    left = {"l0n0": 3, "l1n1": 4}

    def run(order: AttemptOrder) -> Outcome:
        if left.get(order.key, 0):
            left[order.key] -= 1
            error = ErrorInfo(code="BROKEN", error_class="transient", message="it broke", retryable=True)
            return Outcome(verdict="failed", error=error, worker_id="inline")
        return succeeded(order)

    async with running(InlineLane(run)) as scheduler:
        made = await spine.submit(LAYERS)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"
    statuses = await spine.statuses(made.task_id)
    assert (statuses["l0n0"], statuses["l1n1"]) == ("COMPLETED", "BLOCKED")
    assert (await spine.subtask(made.task_id, "l0n0"))["attempt"] == 4
    assert (await spine.subtask(made.task_id, "l1n1"))["attempt"] == 4
    assert list(statuses.values()).count("SKIPPED") == 16


async def test_a_fallback_is_used_at_once_while_the_breaker_is_open(spine: Spine, running: Running) -> None:
    shut = BreakerView(state="open", retry_at=None)
    tools = ToolSnapshot(version=1, tools={name: tool(name) for name in "tu"}, breakers={"t": shut})
    lane, before = InlineLane(), await usage.tool_stats(spine.engine)
    async with running(lane, registry=Registry(tools)) as scheduler:
        made = await spine.submit({"a": [], "b": []}, {"a": FALLBACK | {"max_retries": 0}})
        await scheduler.wake()

        async def done() -> bool:
            return await spine.statuses(made.task_id) == {"a": "COMPLETED", "b": "QUEUED"}

        await until(done)
        assert [(order.key, order.tool, order.attempt) for order in lane.started] == [("a", "u", 2)]
    row = await spine.subtask(made.task_id, "a")
    assert (row["retry_count"], row["fallback_attempts"]) == (0, [2])
    assert (await spine.subtask(made.task_id, "b"))["attempt"] == 0
    first, second = await spine.rows(
        "SELECT status, error FROM execution_logs WHERE sub_task_id = $1 ORDER BY attempt", row["id"]
    )
    assert (first["status"], first["error"]["code"], second["error"]) == ("FAILED", "BREAKER_OPEN", None)
    reasons = await spine.rows(
        "SELECT to_status, reason FROM task_events WHERE task_id = $1 AND subtask = 'a' AND attempt = 1 ORDER BY id",
        made.task_id,
    )
    assert [(each["to_status"], each["reason"]) for each in reasons] == [
        ("RUNNING", None),
        ("FAILED", "the breaker of t is open: the subtask turns to its fallback u at once"),
        ("QUEUED", "fallback"),
    ]
    # Nobody called the one, and somebody did call the other.
    after = await usage.tool_stats(spine.engine)
    assert after.get("t") == before.get("t")
    assert after["u"].calls == (before["u"].calls if "u" in before else 0) + 1
    await spine.put_away()


async def test_what_is_retried_by_hand_runs_again_and_letters_are_told(
    spine: Spine, running: Running, redis: str
) -> None:
    stuck = {"l1n0", "l1n1"}

    def run(order: AttemptOrder) -> Outcome:
        if order.key in stuck:
            error = ErrorInfo(code="WRONG", error_class="user", message="it is wrong", retryable=False)
            return Outcome(verdict="failed", error=error, worker_id="inline")
        return succeeded(order)

    lane = InlineLane(run)
    async with running(lane) as scheduler:
        made = await spine.submit(LAYERS)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"

        async def told() -> bool:
            sql = "SELECT 1 FROM dead_letters WHERE task_id = $1 AND mirrored"
            return len(await spine.rows(sql, made.task_id)) == 2

        if redis != NO_REDIS:
            await until(told)
        else:
            assert not await told()
        stuck.clear()
        # Nobody offers what is QUEUED again: without Redis, and should Redis lose it, it is found all the same.
        assert len((await spine.retry(made.task_id)).queued) == 2
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"
    begun = Counter(order.key for order in lane.started)
    assert begun == Counter(list(LAYERS)) + Counter(["l1n0", "l1n1"])


async def test_an_output_that_the_database_refuses_ends_its_own_attempt(spine: Spine, running: Running) -> None:
    def run(order: AttemptOrder) -> Outcome:
        if order.key == "bad":
            return Outcome(verdict="succeeded", output='"\\u0000"', tokens_used=2**70, worker_id="inline")
        return succeeded(order)

    async with running(InlineLane(run)) as scheduler:
        made = await spine.submit({f"s{n}": [] for n in range(9)} | {"bad": []})
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"
    statuses = await spine.statuses(made.task_id)
    assert statuses == {f"s{n}": "COMPLETED" for n in range(9)} | {"bad": "BLOCKED"}
    assert (await spine.subtask(made.task_id, "bad"))["error"]["code"] == "OUTPUT_UNSTORABLE"


async def test_an_output_that_ends_every_connection_ends_its_own_attempt(spine: Spine, running: Running) -> None:
    await spine.rows(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END'"
    )
    await spine.rows(
        "CREATE TRIGGER die BEFORE UPDATE ON sub_tasks FOR EACH ROW "
        "WHEN (NEW.output_result = '\"deadly\"') EXECUTE FUNCTION die()"
    )

    def run(order: AttemptOrder) -> Outcome:
        if order.key == "deadly":
            return Outcome(verdict="succeeded", output='"deadly"', worker_id="inline")
        return succeeded(order)

    async with running(InlineLane(run)) as scheduler:
        made = await spine.submit({f"s{n}": [] for n in range(5)} | {"deadly": []})
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"
    await spine.rows("DROP TRIGGER die ON sub_tasks")
    await spine.rows("DROP FUNCTION die()")
    assert await spine.statuses(made.task_id) == {f"s{n}": "COMPLETED" for n in range(5)} | {"deadly": "BLOCKED"}
    assert (await spine.subtask(made.task_id, "deadly"))["error"]["code"] == "OUTPUT_UNSTORABLE"


async def test_two_schedulers_share_the_work(spine: Spine, running: Running) -> None:
    lanes = InlineLane(), InlineLane()
    async with running(lanes[0], actor="one") as one, running(lanes[1], actor="two") as two:
        made = [await spine.submit(LAYERS) for _ in range(4)]
        await asyncio.gather(one.wake(), two.wake())
        assert [await _ended(spine, task.task_id) for task in made] == ["COMPLETED"] * 4
    ran = [(order.sub_task_id, order.attempt) for lane in lanes for order in lane.started]
    assert len(ran) == len(set(ran)) == 4 * len(LAYERS)


async def test_an_attempt_whose_lane_refuses_it_does_not_stay_running(spine: Spine, running: Running) -> None:
    class Refusing(InlineLane):
        def start(self, *_: Any) -> Any:
            raise ValueError("no such resource")

    async with running(Refusing()) as scheduler:
        made = await spine.submit({"a": [], "b": [], "c": [], "d": [], "e": [], "f": []})
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"
    assert set((await spine.statuses(made.task_id)).values()) == {"BLOCKED"}


async def test_a_prompt_whose_plan_is_refused_ends_its_task(spine: Spine, running: Running) -> None:
    async with running(InlineLane()) as scheduler:
        new = NewTask(user_id=spine.user_id, title="t", prompt="do it", priority=5)
        made = await submit_task(spine.engine, spine.blobs, new)
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "FAILED"
    error = (await spine.task(made.task_id))["error"]
    assert error["code"] == "PLAN_REFUSED"
    assert "nothing" in dump(error)


async def test_a_closed_scheduler_leaves_no_lease_to_wait_for(spine: Spine, running: Running) -> None:
    class Endless(InlineLane):
        def start(self, order: AttemptOrder, *_: Any) -> Any:
            self.started.append(order)
            return self

    endless, lane = Endless(), InlineLane()
    made = await spine.submit({"a": [], "b": ["a"]})
    async with running(endless, actor="first") as scheduler:
        await scheduler.wake()

        async def has_started() -> bool:
            return bool(endless.started)

        await until(has_started)
    async with running(lane, actor="second") as scheduler:
        await scheduler.wake()
        assert await _ended(spine, made.task_id) == "COMPLETED"
    assert [(order.key, order.attempt) for order in lane.started] == [("a", 2), ("b", 1)]
    assert (await spine.subtask(made.task_id, "a"))["retry_count"] == 0


@pytest.mark.parametrize("error", [Transient("DATABASE_UNAVAILABLE", "away"), ValueError("a bug")])
async def test_what_runs_goes_on_while_the_database_is_away_or_a_heartbeat_fails(
    spine: Spine, running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Held(InlineLane):
        ends: Callable[[], object] | None = None

        def start(self, order: AttemptOrder, _shape: Any, done: Callable[[Outcome], None]) -> Any:
            self.started.append(order)
            self.ends = lambda: done(succeeded(order))
            return self

    heard: list[bool] = []

    async def silent(*_: Any, **__: Any) -> bool:
        heard.append(True)
        raise error

    lane = Held()
    made = await spine.submit({"a": []})
    async with running(lane) as scheduler:
        await scheduler.wake()

        async def has_started() -> bool:
            return lane.ends is not None

        async def beat_twice() -> bool:
            return len(heard) > 1

        await until(has_started)
        life = (await scheduler.health())["incarnation"]
        with monkeypatch.context() as patched:
            patched.setattr(incarnations, "heartbeat", silent)
            await until(beat_twice)
        assert lane.ends is not None
        lane.ends()
        assert await _ended(spine, made.task_id) == "COMPLETED"
        assert (await scheduler.health())["incarnation"] == life
    assert [(order.key, order.attempt) for order in lane.started] == [("a", 1)]


async def test_no_attempt_of_a_life_that_breaks_runs_on_into_the_next_one(
    spine: Spine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[bool] = []

    class Endless(InlineLane):
        def start(self, order: AttemptOrder, *_: Any) -> Any:
            self.started.append(order)
            return self

        def stop(self, *, force: bool) -> None:
            stops.append(force)

    lane = Endless()
    await spine.submit({"a": []})
    async with running(lane) as scheduler:
        await scheduler.wake()

        async def has_started() -> bool:
            return bool(lane.started)

        async def lives_anew() -> bool:
            return (await scheduler.health())["incarnation"] not in (life, "None")

        async def breaks(*_: Any) -> bool:
            raise RuntimeError("it breaks")

        await until(has_started)
        life = (await scheduler.health())["incarnation"]
        with monkeypatch.context() as patched:
            patched.setattr(scheduler, "_beat", breaks)

            async def is_killed() -> bool:
                return bool(stops)

            await until(is_killed)
        await until(lives_anew)
    assert stops[0]


async def test_what_has_ended_is_written_down_before_a_scheduler_closes(spine: Spine, running: Running) -> None:
    class Late(InlineLane):
        done: Callable[[Outcome], None] | None = None

        def start(self, order: AttemptOrder, _shape: Any, done: Callable[[Outcome], None]) -> Any:
            self.started.append(order)
            self.done = done
            return self

    lane = Late()
    made = await spine.submit({"a": []})
    async with running(lane) as scheduler:
        await scheduler.wake()

        async def has_started() -> bool:
            return lane.done is not None

        await until(has_started)
        assert lane.done is not None
        lane.done(succeeded(lane.started[0]))
    assert await spine.statuses(made.task_id) == {"a": "COMPLETED"}
