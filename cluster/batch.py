"""A batch: every line of a JSONL file is a task; the results come out in the same order, one line each.

    python -m rayloom.cluster.batch tasks.jsonl --out results.jsonl

Made to be killed and started again, as a Ray job or by hand: each line has an Idempotency-Key of its own that follows
from the file's content, so that a rerun finds the tasks of the run before instead of making new ones, and goes on
behind the last result that was written. It only talks to the API; the work is done by the cluster.
"""

from __future__ import annotations

import hashlib
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from rayloom.cluster.results import ResultsFile
from rayloom.dag.errors import ErrorInfo, RayloomError, Transient, UserError
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.answers import Busy, Rejected
from rayloom.serve.client import TERMINAL, Client

PROGRESS_EVERY_S: Final = 5.0
AHEAD_MAX: Final = 1_000
"""So many results are kept waiting, at most, for an earlier line that takes long."""
# These say something about us and not about the line: the next lines would fare no better.
_STOPPING_STATUS: Final = frozenset({401, 403, 404, 405})

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """What to run and how.

    ``timeout_s`` ends the batch's own waiting, not the tasks; ``patience_s`` is how long an API that is away is waited
    for; ``run`` is a name that makes new tasks of a file that ran before.
    """

    source: Path
    out: Path
    concurrency: int = 16
    timeout_s: float | None = None
    patience_s: float = 600.0
    run: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the input that is not blank; ``number`` counts from 1, blank lines included."""

    number: int
    content: bytes

    def key(self, batch_id: str) -> str:
        """The Idempotency-Key of this line in this batch."""
        digest = hashlib.sha256(b"\0".join((batch_id.encode(), str(self.number).encode(), self.content)))
        return f"batch-{digest.hexdigest()[:48]}"


def lines_of(source: Path) -> Iterator[Line]:
    """The lines of a file that are not blank. Raises UserError when it can't be read."""
    try:
        with source.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                content = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
                if content:
                    yield Line(number=number, content=content)
    except OSError as error:
        raise UserError("NO_INPUT", f"can't read {source}: {error.strerror or error}") from error


def batch_id_of(lines: Iterator[Line], run: str) -> tuple[str, int]:
    """The identity of a batch, which follows from its lines alone, and how many they are."""
    digest, count = hashlib.sha256(run.encode()), 0
    for line in lines:
        digest.update(b"\0%d\0%b" % (line.number, line.content))
        count += 1
    return digest.hexdigest()[:32], count


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEnd:
    """How a batch ended: lines by the status of their task, ``REFUSED`` for those that made none."""

    batch_id: str
    lines: int
    statuses: Mapping[str, int]
    out: Path

    @property
    def exit_code(self) -> int:
        """0 when every task completed, 3 when one failed or was refused, 4 when one was cancelled and none failed."""
        completed, cancelled = self.statuses.get("COMPLETED", 0), self.statuses.get("CANCELLED", 0)
        return 0 if completed == self.lines else 4 if completed + cancelled == self.lines else 3

    def as_json(self) -> JsonObject:
        """The document of ``rayloom batch --json``."""
        statuses = dict[str, Json](sorted(self.statuses.items()))
        return {"batch_id": self.batch_id, "lines": self.lines, "statuses": statuses, "out": str(self.out)}


def run_batch(client: Client, options: BatchOptions, *, say: Say) -> BatchEnd:
    """Run a batch to its end; progress goes to ``say`` in plain lines.

    Raises UserError when input and results don't fit together, Rejected when the API refuses us altogether, Transient
    when it stays away: what was written by then stands, and the same command goes on from there.
    """
    batch_id, count = batch_id_of(lines_of(options.source), options.run)
    with ResultsFile(options.out, batch_id) as results:
        tally = Counter(results.statuses)
        say(f"batch {batch_id}: {count} lines, {results.count} done already, {options.concurrency} at a time")
        Batch(client, options, batch_id, results, tally, say).run(count)
    say(f"batch {batch_id}: {_summary(tally, count)}; results in {options.out}")
    return BatchEnd(batch_id=batch_id, lines=count, statuses=dict(tally), out=options.out)


class Batch:
    """One run of a batch: workers that submit and wait, and a writer that keeps the order."""

    def __init__(
        self,
        client: Client,
        options: BatchOptions,
        batch_id: str,
        results: ResultsFile,
        tally: Counter[str],
        say: Say,
    ) -> None:
        self._client, self._options, self._batch_id = client, options, batch_id
        self._results, self._tally, self._say = results, tally, say
        self._todo: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, JsonObject | Exception]] = queue.SimpleQueue()
        self._order: deque[int] = deque()
        self._waiting: dict[int, JsonObject] = {}
        self._under_way = 0

    def run(self, count: int) -> None:
        """Everything from the first line without a result to the last, of ``count`` in all."""
        remaining = self._remaining()
        now = started_at = told_at = time.monotonic()
        # Daemons: a worker that waits for a task must not keep an interrupted batch alive.
        for _ in range(min(self._options.concurrency, count - self._results.count)):
            threading.Thread(target=self._work, daemon=True).start()
        while self._feed(remaining):
            limit_s = self._options.timeout_s
            left_s = PROGRESS_EVERY_S if limit_s is None else started_at + limit_s - now
            if left_s <= 0:
                raise Transient(
                    "BATCH_TIMEOUT",
                    f"stopped after {limit_s:g} s: {_summary(self._tally, count)}; the same command goes on from there",
                )
            self._collect(max(0.0, min(left_s, told_at + PROGRESS_EVERY_S - now)))
            now = time.monotonic()
            if now - told_at >= PROGRESS_EVERY_S:
                told_at = now
                self._say(f"batch {self._batch_id}: {_summary(self._tally, count)}, {self._under_way} under way")

    def _remaining(self) -> Iterator[Line]:
        written = iter(self._results.numbers)
        for line in lines_of(self._options.source):
            done = next(written, None)
            if done is None:
                yield line
            elif done != line.number:
                raise UserError("RESULTS_MIXED_UP", f"{self._options.out} has line {done} where {line.number} is due")

    def _feed(self, remaining: Iterator[Line]) -> bool:
        """Keep the workers busy; whether anything is under way."""
        while self._under_way < self._options.concurrency and len(self._waiting) < AHEAD_MAX:
            line = next(remaining, None)
            if line is None:
                break
            self._order.append(line.number)
            self._todo.put(line)
            self._under_way += 1
        return self._under_way > 0

    def _collect(self, wait_s: float) -> None:
        """Take one result, if there is one within ``wait_s``, and write what is next in order."""
        try:
            number, result = self._done.get(timeout=wait_s)
        except queue.Empty:
            return
        self._under_way -= 1
        if isinstance(result, Exception):
            raise result
        self._waiting[number] = result
        while self._order and self._order[0] in self._waiting:
            ready = self._waiting.pop(self._order.popleft())
            self._results.append(ready)
            self._tally[str(ready["status"] or "REFUSED")] += 1

    def _work(self) -> None:
        while True:
            line = self._todo.get()
            try:
                self._done.put((line.number, self._result(line)))
            except Exception as error:  # noqa: BLE001 - carried to the main thread, which raises it
                self._done.put((line.number, error))

    def _result(self, line: Line) -> JsonObject:
        try:
            body = orjson.loads(line.content)
        except orjson.JSONDecodeError as error:
            return _refused(line, UserError("NOT_JSON", f"line {line.number} is not JSON: {error}"))
        if not isinstance(body, dict):
            return _refused(line, UserError("NOT_AN_OBJECT", f"line {line.number} is not a JSON object"))
        try:
            task_id = self._client.submit(body, idempotency_key=line.key(self._batch_id)).task_id
        except Rejected as error:
            if error.problem.status in _STOPPING_STATUS:
                raise
            return _refused(line, error, [fault.as_json() for fault in error.problem.faults])
        except Busy as error:
            # After several tries, a 500 is about this line.
            if error.problem.status != 500:
                raise
            return _refused(line, error)
        task = self._ended(task_id)
        names = ("status", "result", "error")
        return {"line": line.number, "task_id": task_id, **{name: task.get(name) for name in names}}

    def _ended(self, task_id: str) -> JsonObject:
        while True:
            for _ in self._client.events(task_id):
                pass
            task = self._client.task(task_id)
            # FAILED may have become PROCESSING again by a retry since: then there is more to wait for.
            if task.get("status") in TERMINAL:
                return task


def _refused(line: Line, error: RayloomError, faults: Sequence[Mapping[str, str]] = ()) -> JsonObject:
    shown: JsonObject = {**ErrorInfo.from_exception(error).as_json()}
    if faults:
        shown["errors"] = [dict[str, Json](fault) for fault in faults]
    return {"line": line.number, "task_id": None, "status": None, "result": None, "error": shown}


def _summary(tally: Counter[str], count: int) -> str:
    return ", ".join([f"{tally.total()} of {count} done", *(f"{n} {name}" for name, n in sorted(tally.items()))])


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m rayloom.cluster.batch``: the same as ``rayloom batch``, in a process that needs no terminal."""
    from rayloom.cluster.cli.program import run

    return run(["batch", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
