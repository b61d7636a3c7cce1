"""Outcomes wait for their commit, and none is lost or counted twice on the way."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from asyncpg import DiskFullError

from rayloom.actors import commits as module
from rayloom.actors.backlog import Backlog
from rayloom.actors.commits import Commits
from rayloom.actors.flight import Flying
from rayloom.actors.settings import EngineSettings
from rayloom.dag.decision import Past
from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.outcome import Outcome
from rayloom.dag.resources import FIRST_MEMORY_BYTES, NodeShape, ResourceShape
from rayloom.db import attempts, log_lines
from rayloom.db.attempts import Claimed, Committed, Ending
from tests.fakes.memory_queue import MemoryQueue
from tests.fakes.memory_record import SHAPE, MemoryRecord
from tests.fakes.refusals import refusals

NOTHING: Any = None
GOOD = Outcome(verdict="succeeded", output="1", worker_id="w", tokens_used=3)
WORKER_DIED = ErrorInfo(code="WORKER_DIED", error_class="transient", message="it died", retryable=True)
ONE_CPU = ResourceShape(cpus=1.0, gpus=0.0, memory_bytes=0)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> MemoryRecord:
    return MemoryRecord().install(monkeypatch)


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def commits(record: MemoryRecord, queue: MemoryQueue) -> Commits:
    settings = EngineSettings(batch_max=4, retry_initial_s=1, retry_max_s=60, timeout_grace_s=3)
    return Commits(NOTHING, Backlog(NOTHING, queue), settings, jitter=lambda: 0.0)


def _flying(id_: str, *, running: bool = True, retry_count: int = 0) -> Flying:
    claimed = Claimed(
        sub_task_id=id_, task_id="task", user_id="ann", key=id_, tool="t", task_type="TOOL", attempt=1,
        retry_count=retry_count, max_retries=3, timeout_s=10.0, input="{}", referred=(), shape=SHAPE, score=0.0,
        running=running,
    )  # fmt: skip
    return Flying(claimed, ONE_CPU, _Still())


class _Still:
    ray_task_id = ""

    def stop(self, *, force: bool) -> None:
        raise AssertionError("it has ended")


def _add(commits: Commits, record: MemoryRecord, id_: str, outcome: Outcome = GOOD, **more: Any) -> Flying:
    flying = _flying(id_, **more)
    record.running[id_] = flying.claimed.running
    commits.add(flying, outcome)
    return flying


async def test_nothing_to_write_writes_nothing(commits: Commits, record: MemoryRecord) -> None:
    assert (await commits.turn()).accepted == frozenset()
    assert record.batches == []


async def test_what_has_ended_is_written_in_batches_in_order(
    commits: Commits, record: MemoryRecord, queue: MemoryQueue
) -> None:
    for n in range(9):
        _add(commits, record, f"s{n}")
    while len(commits):
        await commits.turn()
    assert record.batches == [4, 4, 1]
    assert [one.sub_task_id for one in record.endings] == [f"s{n}" for n in range(9)]
    assert [(one.sub_task_id, one.tokens) for one in commits.finished] == [(f"s{n}", 3) for n in range(9)]
    assert queue.told == ["task"] * 3


async def test_a_database_that_is_away_keeps_every_outcome(commits: Commits, record: MemoryRecord) -> None:
    for n in range(6):
        _add(commits, record, f"s{n}")
    record.away = True
    for _ in range(3):
        with pytest.raises(Transient):
            await commits.turn()
    assert (len(commits), commits.finished) == (6, [])
    record.away = False
    await commits.turn()
    await commits.turn()
    assert [one.sub_task_id for one in record.endings] == [f"s{n}" for n in range(6)]
    assert len(commits.finished) == 6


async def test_one_commit_holds_only_so_many_bytes(
    commits: Commits, record: MemoryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    for n, size in enumerate((60, 30, 30, 500, 10, 90)):
        _add(commits, record, f"s{n}", Outcome(verdict="succeeded", output="1", output_size=size, worker_id="w"))
    while len(commits):
        await commits.turn()
    assert record.batches == [2, 1, 1, 2]
    assert len(record.endings) == 6


async def test_an_output_that_the_database_refuses_fails_its_attempt_for_good(
    commits: Commits, record: MemoryRecord
) -> None:
    record.unstorable = {"bad"}
    bad = Outcome(
        verdict="succeeded", output="bad", output_size=3, stdout="\0", spans="[", tokens_used=2**70, worker_id="w",
        started_at=1.0, finished_at=2.0, ray_task_id="r",
    )  # fmt: skip
    _add(commits, record, "good")
    _add(commits, record, "bad", bad)
    committed = await commits.turn()
    assert committed.accepted == {"good", "bad"}
    ending = record.endings[-1]
    assert (ending.sub_task_id, ending.retry_in_s) == ("bad", None)
    outcome = ending.outcome
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("OUTPUT_UNSTORABLE", False)
    assert "it can't be stored" in outcome.error.message
    # What is told in its place holds nothing that could be refused again.
    assert (outcome.verdict, outcome.output, outcome.stdout, outcome.spans) == ("failed", None, "", "[]")
    assert outcome.tokens_used < 2**63
    assert (outcome.started_at, outcome.finished_at, outcome.worker_id, outcome.ray_task_id) == (1.0, 2.0, "w", "r")


async def _turn_again(commits: Commits, times: int) -> None:
    """So many turns, whatever becomes of them."""
    for _ in range(times):
        with suppress(Transient):
            await commits.turn()


async def test_an_output_on_which_the_database_fails_each_time_is_found_and_given_up(
    commits: Commits, record: MemoryRecord
) -> None:
    record.deadly = {"deadly"}
    for n in range(9):
        _add(commits, record, f"s{n}", replace(GOOD, output="deadly") if n == 2 else GOOD)
    # The first failure may be anything; three more of the same; then halves; then three more alone; then its refusal.
    await _turn_again(commits, 4 + 3 + 3 + 4)
    assert len(commits) == 0
    assert record.batches[:6] == [4, 4, 4, 4, 2, 2]
    ended = {ending.sub_task_id: ending for ending in record.endings}
    assert {id_ for id_, ending in ended.items() if ending.outcome == GOOD} == {f"s{n}" for n in range(9)} - {"s2"}
    error = ended["s2"].outcome.error
    assert error is not None
    assert (error.code, ended["s2"].retry_in_s) == ("OUTPUT_UNSTORABLE", None)
    assert len(commits.finished) == 9


@pytest.mark.parametrize("how", ["away", "read_only"])
async def test_as_long_as_the_database_takes_no_writes_no_output_is_to_blame(
    commits: Commits, record: MemoryRecord, how: str
) -> None:
    _add(commits, record, "a")
    setattr(record, how, True)
    await _turn_again(commits, 50)
    # Told once that it can't write, it is not sent everything again each time.
    assert len(record.batches) <= 1
    setattr(record, how, False)
    await commits.turn()
    assert [ending.outcome for ending in record.endings] == [GOOD]


async def test_a_disk_that_is_full_is_no_outputs_fault(
    commits: Commits, record: MemoryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    async def full(_engine: Any, endings: Sequence[Ending]) -> Committed:
        batches.append(len(endings))
        raise Transient("DATABASE_UNAVAILABLE", "no answer") from DiskFullError("no space left on device")

    for n in range(4):
        _add(commits, record, f"s{n}")
    with monkeypatch.context() as patched:
        patched.setattr(attempts, "complete", full)
        await _turn_again(commits, 50)
    assert batches == [4] * 50
    await commits.turn()
    assert [ending.outcome for ending in record.endings] == [GOOD] * 4


async def test_a_refusal_that_is_refused_loses_nothing(commits: Commits, record: MemoryRecord) -> None:
    record.unstorable = {"bad", ""}
    _add(commits, record, "bad", replace(GOOD, output="bad"))
    with pytest.raises(Transient):
        await commits.turn()
    assert (len(commits), commits.finished) == (1, [])
    record.unstorable = {"bad"}
    assert (await commits.turn()).accepted == {"bad"}
    assert len(commits.finished) == 1


async def test_a_refusal_holds_no_time_that_is_none(commits: Commits, record: MemoryRecord) -> None:
    record.unstorable = {"bad"}
    nan = float("nan")
    _add(commits, record, "bad", replace(GOOD, output="bad", started_at=nan, finished_at=nan))
    await commits.turn()
    outcome = record.endings[-1].outcome
    assert (outcome.started_at, outcome.finished_at) == (0.0, 0.0)


async def test_a_lease_that_nobody_began_is_given_back(
    commits: Commits, record: MemoryRecord, queue: MemoryQueue
) -> None:
    lost = Outcome(verdict="lost", error=WORKER_DIED)
    _add(commits, record, "handed", lost, running=False)
    _add(commits, record, "ran", lost)
    _add(commits, record, "told", GOOD, running=False)
    await commits.turn()
    assert record.released == ["handed"]
    assert {one.sub_task_id: one.started for one in commits.finished} == {"handed": False, "ran": True, "told": True}
    assert [item.sub_task_id for item in (await queue.pop({SHAPE: 9})).items] == ["handed"]


@pytest.mark.parametrize(
    ("lasted_s", "overran", "code", "verdict"),
    [
        (12.9, False, "WORKER_DIED", "failed"),
        (13.0, False, "WORKER_DIED", "timed_out"),
        (1.0, True, "CANCELLED", "timed_out"),
        (1.0, False, "CANCELLED", "cancelled"),
        (99.0, False, "OUT_OF_MEMORY", "failed"),
    ],
)
async def test_a_worker_that_was_killed_for_its_timeout_timed_out(
    commits: Commits, record: MemoryRecord, lasted_s: float, overran: bool, code: str, verdict: str
) -> None:
    error = ErrorInfo(code=code, error_class="transient", message="gone", retryable=True)
    outcome = Outcome(
        verdict="cancelled" if code == "CANCELLED" else "failed",
        error=error,
        started_at=5.0,
        finished_at=5.0 + lasted_s,
    )
    _add(commits, record, "a", outcome).overran = overran
    committed = await commits.turn()
    (ending,) = record.endings
    assert ending.outcome.verdict == verdict
    assert ending.outcome.error is not None
    assert ending.outcome.error.code == ("TIMED_OUT" if verdict == "timed_out" else code)
    assert committed.retry_in_s == ending.retry_in_s is not None


async def test_a_success_that_came_late_is_a_success(commits: Commits, record: MemoryRecord) -> None:
    _add(commits, record, "a").overran = True
    await commits.turn()
    assert record.endings[0].outcome == GOOD


@pytest.mark.parametrize(
    ("retry_count", "retryable", "wait_s", "spends"),
    [(0, True, 2.0, True), (2, True, 8.0, True), (3, True, None, True), (0, False, None, True)],
)
async def test_what_follows_a_failure_is_decided_here(
    commits: Commits, record: MemoryRecord, retry_count: int, retryable: bool, wait_s: float | None, spends: bool
) -> None:
    error = ErrorInfo(code="X", error_class="transient", message="x", retryable=retryable)
    _add(commits, record, "a", Outcome(verdict="failed", error=error, worker_id="w"), retry_count=retry_count)
    committed = await commits.turn()
    (ending,) = record.endings
    assert (ending.retry_in_s, ending.spends) == (wait_s, spends)
    assert committed.retry_in_s == wait_s


async def test_without_redis_the_commit_stands(commits: Commits, record: MemoryRecord, queue: MemoryQueue) -> None:
    queue.away = True
    _add(commits, record, "a")
    assert (await commits.turn()).accepted == {"a"}
    assert len(commits) == 0


@pytest.mark.parametrize(
    ("outcome", "event"),
    [(GOOD, "succeeded"), (Outcome(verdict="failed", error=WORKER_DIED, worker_id="w"), "attempt_failed")],
)
async def test_an_outcome_that_comes_too_late_is_told_in_one_line(
    commits: Commits, record: MemoryRecord, caplog: pytest.LogCaptureFixture, outcome: Outcome, event: str
) -> None:
    caplog.set_level(logging.INFO)
    record.moved_on = {"late": "CANCELLED"}
    _add(commits, record, "a")
    _add(commits, record, "late", outcome)
    await commits.turn()
    assert refusals(caplog) == [
        {"task_id": "task", "subtask": "late", "attempt": 1, "from": "CANCELLED", "event": event}
    ]
    assert len(commits.finished) == 2


async def test_what_was_stopped_because_it_is_cancelled_and_what_was_given_back_is_no_refusal(
    commits: Commits, record: MemoryRecord, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    record.moved_on = {"stopped": "CANCELLED"}
    stop = ErrorInfo(code="CANCELLED", error_class="refused", message="stopped", retryable=False)
    _add(commits, record, "stopped", Outcome(verdict="cancelled", error=stop, worker_id="w"))
    _add(commits, record, "handed", Outcome(verdict="lost", error=WORKER_DIED), running=False)
    await commits.turn()
    assert record.released == ["handed"]
    assert refusals(caplog) == []


async def test_the_log_says_when_a_stopped_attempt_has_ended(
    commits: Commits, record: MemoryRecord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[LogLine] = []

    async def append(_line: Any, lines: Sequence[LogLine]) -> None:
        said.extend(lines)

    monkeypatch.setattr(log_lines, "append", append)
    caplog.set_level(logging.INFO)
    record.moved_on = {"stopped": "CANCELLED", "killed": "CANCELLED"}
    stop = ErrorInfo(code="CANCELLED", error_class="refused", message="stopped", retryable=False)
    _add(commits, record, "stopped", Outcome(verdict="cancelled", error=stop, worker_id="w"))
    _add(commits, record, "killed", Outcome(verdict="failed", error=WORKER_DIED, worker_id="w"))
    for flying, _ in commits._ended:
        flying.stopping_at = 1.0
    flying.killed_at = 2.0
    await commits.turn()
    assert [(line.subtask, line.message.partition(",")[0]) for line in said] == [
        ("stopped", "attempt 1 has ended"), ("killed", "attempt 1 has ended by force"),
    ]  # fmt: skip
    assert refusals(caplog) == []


async def test_a_late_outcome_is_told_also_when_nobody_can_say_where_its_subtask_is(
    commits: Commits, record: MemoryRecord, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> dict[str, str]:
        raise Transient("DATABASE_UNAVAILABLE", "away")

    monkeypatch.setattr(attempts, "statuses", away)
    caplog.set_level(logging.INFO)
    record.moved_on = {"late": "RUNNING"}
    _add(commits, record, "late")
    await commits.turn()
    assert [told["from"] for told in refusals(caplog)] == [None]
    assert len(commits) == 0


STARVED = ErrorInfo(code="OUT_OF_MEMORY", error_class="transient", message="x", retryable=True)
SLOW = ErrorInfo(code="TIMED_OUT", error_class="transient", message="x", retryable=True)
NODE = NodeShape(total={"CPU": 4, "memory": 64e9}, labels={}, count_max=1)


async def test_who_ran_out_of_memory_is_tried_again_once_with_more(commits: Commits, record: MemoryRecord) -> None:
    commits.nodes = (NODE,)
    _add(commits, record, "a", Outcome(verdict="failed", error=STARVED))
    await commits.turn()
    (shape,) = record.reshaped.values()
    assert shape == replace(ONE_CPU, memory_bytes=FIRST_MEMORY_BYTES)
    record.past = {"a": Past(out_of_memory=1)}
    _add(commits, record, "a", Outcome(verdict="failed", error=STARVED), retry_count=1)
    await commits.turn()
    assert [ending.retry_in_s for ending in record.endings] == [2.0, None]
    assert len(record.reshaped) == 1


async def test_where_no_node_gives_more_memory_it_is_tried_again_as_it_was(
    commits: Commits, record: MemoryRecord
) -> None:
    _add(commits, record, "a", Outcome(verdict="failed", error=STARVED))
    await commits.turn()
    assert record.endings[-1].retry_in_s is not None
    assert record.reshaped == {}


@pytest.mark.parametrize(("lost", "spends"), [(0, False), (1, False), (2, True)])
async def test_an_attempt_that_is_lost_to_the_database_again_and_again_spends_retries(
    commits: Commits, record: MemoryRecord, lost: int, spends: bool
) -> None:
    record.past = {"a": Past(lost=lost)}
    _add(commits, record, "a", Outcome(verdict="lost", error=SLOW, worker_id="w"))
    await commits.turn()
    assert record.endings[-1].spends is spends


async def test_an_attempt_without_its_blobs_is_tried_ever_later(commits: Commits, record: MemoryRecord) -> None:
    record.past = {"a": Past(without_blobs=4)}
    away = ErrorInfo(code="BLOB_STORE_UNAVAILABLE", error_class="transient", message="x", retryable=True)
    for key in "ab":
        _add(commits, record, key, Outcome(verdict="lost", error=away, worker_id="w"))
    await commits.turn()
    assert [(ending.retry_in_s, ending.spends) for ending in record.endings] == [(16.0, False), (1.0, False)]
