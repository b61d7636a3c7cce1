"""An attempt's log is written in batches; quick attempts cost nothing; a database that is away loses no line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from rayloom.actors import reporter as module
from rayloom.actors import trouble
from rayloom.actors.reporter import AttemptReporter
from rayloom.dag.errors import Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.states import Phase
from tests.unit.actors.test_attempt import order


class KeptRecords:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lines: list[LogLine] = []
        self.batches: list[int] = []
        self.opened = 0
        self.away = False
        self.news = asyncio.Event()

    def open(self) -> KeptRecords:
        self.opened += 1
        return self

    def _answer(self, what: str) -> None:
        if self.away:
            raise Transient("DATABASE_UNAVAILABLE", "away")
        self.told.append(what)
        self.news.set()

    async def begin(self, order: Any, ray_task_id: str) -> bool:
        self._answer(f"begin {ray_task_id}")
        return True

    async def tell_phase(self, order: Any, phase: Phase, ray_task_id: str) -> bool:
        self._answer(f"{phase} {ray_task_id}")
        return True

    async def append(self, lines: Sequence[LogLine]) -> None:
        self._answer("append")
        self.batches.append(len(lines))
        self.lines += lines

    async def signal(self, task_id: str) -> None:
        self._answer("signal")

    async def until(self, seen: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not seen():
                self.news.clear()
                await self.news.wait()


@pytest.fixture
def records() -> KeptRecords:
    return KeptRecords()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REPORT_S", 0.0)
    monkeypatch.setattr(module, "FLUSH_S", 0.0)


async def test_a_quick_attempt_without_a_log_opens_no_connection(records: KeptRecords) -> None:
    reporter = AttemptReporter(records.open, order(running=False), "r")
    for phase in Phase:
        reporter.phase(phase)
    await reporter.close()
    assert records.opened == 0


async def test_the_lines_of_a_quick_attempt_are_written_once_at_its_end(records: KeptRecords) -> None:
    reporter = AttemptReporter(records.open, order(), "r")
    reporter.line("one")
    reporter.line("two", stream="stdout", level="ERROR", fields={"n": float("nan"), "a": "b\0"})
    await reporter.close()
    assert records.batches == [2]
    one, two = records.lines
    assert (one.message, one.stream, one.level, one.task_id, one.subtask, one.attempt) == (
        "one", "tool", "INFO", "task", "k", 2,
    )  # fmt: skip
    assert (two.stream, two.level, two.fields) == ("stdout", "ERROR", {"n": None, "a": "b\ufffd"})
    assert one.at <= two.at


@pytest.mark.usefixtures("at_once")
async def test_an_attempt_that_lasts_says_that_it_began_and_where_it_is(records: KeptRecords) -> None:
    reporter = AttemptReporter(records.open, order(running=False), "r")
    reporter.phase(Phase.EXECUTING)
    await records.until(lambda: "signal" in records.told)
    assert records.told[:3] == ["begin r", "EXECUTING r", "signal"]
    reporter.phase(Phase.POST_PROCESS)
    await records.until(lambda: "POST_PROCESS r" in records.told)
    await reporter.close()
    assert records.told.count("begin r") == 1
    assert records.told.count("EXECUTING r") == 1


@pytest.mark.usefixtures("at_once")
async def test_one_that_is_running_already_does_not_begin_again(records: KeptRecords) -> None:
    reporter = AttemptReporter(records.open, order(running=True), "r")
    reporter.phase(Phase.EXECUTING)
    await records.until(lambda: "signal" in records.told)
    await reporter.close()
    assert "begin r" not in records.told


@pytest.mark.usefixtures("at_once")
async def test_a_database_that_is_away_loses_no_line(
    records: KeptRecords, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    monkeypatch.setattr(trouble, "monotonic", lambda: 100.0)
    records.away = True
    reporter = AttemptReporter(records.open, order(), "r")
    for n in range(5):
        reporter.line(f"line {n}")
    while records.opened < 30:  # noqa: ASYNC110 - it lets the reporter run
        await asyncio.sleep(0)
    # An outage is told once at first, and needs no traceback.
    assert [(line.message, bool(line.exc_info)) for line in caplog.records] == [("attempt.report_failed: away", False)]
    records.away = False
    await records.until(lambda: len(records.lines) == 5)
    reporter.line("last")
    await reporter.close()
    assert [line.message for line in records.lines] == [*(f"line {n}" for n in range(5)), "last"]


async def test_closing_while_a_batch_is_written_writes_no_line_twice(at_once: None) -> None:
    class SlowRecords(KeptRecords):
        def __init__(self) -> None:
            super().__init__()
            self.committed, self.go = asyncio.Event(), asyncio.Event()

        async def append(self, lines: Sequence[LogLine]) -> None:
            await super().append(lines)
            self.committed.set()
            await self.go.wait()

    records = SlowRecords()
    reporter = AttemptReporter(records.open, order(), "r")
    reporter.line("first")
    await records.committed.wait()
    reporter.line("last")
    closing = asyncio.create_task(reporter.close())
    await asyncio.sleep(0)
    records.go.set()
    await closing
    assert [line.message for line in records.lines] == ["first", "last"]


async def test_many_lines_are_written_in_bounded_batches(records: KeptRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_LINES", 10)
    reporter = AttemptReporter(records.open, order(), "r")
    for n in range(35):
        reporter.line(str(n))
    await records.until(lambda: len(records.lines) == 35)
    await reporter.close()
    assert max(records.batches) == 10
    assert [line.message for line in records.lines] == [str(n) for n in range(35)]


async def test_endless_output_is_counted_and_not_kept(records: KeptRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 3)
    reporter = AttemptReporter(records.open, order(), "r")
    for n in range(10):
        reporter.line(str(n))
    await reporter.close()
    assert [(line.message, line.level) for line in records.lines][3:] == [("7 more lines were dropped", "WARNING")]


async def test_a_line_never_raises_whatever_its_fields(records: KeptRecords) -> None:
    reporter = AttemptReporter(records.open, order(), "r")
    circle: dict[str, Any] = {}
    circle["itself"] = circle
    for fields in ({"a": b"bytes"}, circle):
        reporter.line("said", fields=cast("dict[str, Any]", fields))
    await reporter.close()
    assert [line.message for line in records.lines] == ["said", "said"]
    assert all("unfit" in line.fields for line in records.lines)


async def test_the_lines_as_text_are_cut_where_they_get_too_long(
    records: KeptRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = AttemptReporter(records.open, order(), "r")
    assert reporter.text(100) == ""
    reporter.line("o\0ne", level="ERROR", stream="stderr")
    reporter.line("two")
    await reporter.close()
    first, second = reporter.text(1000).splitlines()
    assert first == f"{records.lines[0].at.isoformat(timespec='milliseconds')} ERROR stderr: o\ufffdne"
    assert second.endswith(" INFO tool: two")
    whole = f"{first}\n{second}"
    assert reporter.text(len(whole)) == whole
    assert reporter.text(40) == f"{whole[:40]}\n… {len(whole) - 40} more characters"
    # What has no place in the attempt's row is not kept in memory for it.
    monkeypatch.setattr(module, "TEXT_CHARS", 150)
    for _ in range(9):
        reporter.line("x" * 1000)
    assert reporter.text(10_000).startswith(whole)
    assert len(reporter.text(10_000)) < 200
    assert sum(map(len, reporter._text)) < 500
    await reporter.close()
