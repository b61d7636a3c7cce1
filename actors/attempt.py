"""One attempt, from its order to its outcome: PREPARE_ENV, EXECUTING, POST_PROCESS. It never raises.

Knows nothing of Ray: what runs it, and in which process, is the business of `lanes`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import orjson

from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import WorkerSettings
from rayloom.dag.errors import ErrorInfo, Refused, Transient, UserError
from rayloom.dag.outcome import Outcome, Verdict
from rayloom.dag.output import clean_text, sanitise
from rayloom.dag.references import resolve
from rayloom.dag.states import Phase
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import checked, run_tool
from rayloom.tools.ports import FilesPort, LogPort
from rayloom.tools.tool import Tool, ToolContext, ToolResult

_log = logging.getLogger(__name__)

LEASE_CHECK_S = 2.0
"""An attempt that Ray kept waiting for longer asks whether its lease still stands."""


class Reporter(LogPort, Protocol):
    """The attempt's log, and the place where it says which phase it is in."""

    def phase(self, phase: Phase) -> None:
        """The attempt has come to this phase; told outside only if the attempt lasts."""

    async def close(self) -> None:
        """Write down what is still buffered, soon."""

    def text(self, limit: int) -> str:
        """All that was told so far as text, cut after ``limit`` characters."""


class Surroundings(Protocol):
    """What an attempt needs of the process that it runs in."""

    settings: WorkerSettings
    worker_id: str
    node_id: str

    async def tool(self, name: str, registry_version: int) -> Tool:
        """The tool, as the registry knows it at this version or later. Raises Refused, UserError."""

    async def outputs(self, task_id: str, keys: Sequence[str]) -> dict[str, Json]:
        """The outputs of completed subtasks of a task, by their ids in the plan."""

    async def begin(self, order: AttemptOrder) -> bool:
        """Say that the attempt has begun. False: its lease is gone."""

    def reporter(self, order: AttemptOrder) -> Reporter:
        """A reporter of its own for one attempt."""

    def files(self, task_id: str) -> FilesPort:
        """The workspace of a task."""


@dataclass(slots=True)
class _Record:
    """What is known of the attempt so far.

    ``limit``: of its text so many characters are kept. ``by``: the worker, the node and the Ray task that run it.
    """

    started_at: float
    clock: Callable[[], float]
    limit: int
    by: tuple[str, str, str]
    spans: list[JsonObject] = field(default_factory=list)
    result: ToolResult | None = None
    called: bool = False
    """Something of the tool may have run."""

    @property
    def undone(self) -> Verdict:
        """How it ended when the world failed it: nothing is tried, and no retry spent, before the tool is called."""
        return "failed" if self.called else "lost"

    @contextmanager
    def phase(self, phase: Phase, reporter: Reporter) -> Iterator[None]:
        reporter.phase(phase)
        started_at, ok = self.clock(), False
        try:
            yield
            ok = True
        finally:
            self.add(phase, "phase", started_at, ok)

    def add(self, name: str, kind: Literal["phase", "tool", "model"], started_at: float, ok: bool) -> None:
        """A named, timed piece that ends now; ``started_at`` in seconds since the epoch."""
        self.spans.append(
            {
                "name": name,
                "kind": kind,
                "started_at": started_at,
                "finished_at": self.clock(),
                "ok": ok,
                "attributes": {},
            }
        )

    def outcome(self, verdict: Verdict, *, error: ErrorInfo | None = None, output: str | None = None) -> Outcome:
        result, (worker_id, node_id, ray_task_id) = self.result, self.by
        return Outcome(
            verdict=verdict,
            output=output,
            output_size=0 if output is None else len(output.encode()),
            error=error,
            started_at=self.started_at,
            finished_at=self.clock(),
            stdout=_head(result.stdout, self.limit) if result else "",
            stderr=_head(result.stderr, self.limit) if result else "",
            tokens_used=result.tokens_used if result else 0,
            spans=orjson.dumps(self.spans).decode(),
            worker_id=worker_id,
            node_id=node_id,
            ray_task_id=ray_task_id,
        )


async def run_attempt(
    order: AttemptOrder, surroundings: Surroundings, *, ray_task_id: str = "", clock: Callable[[], float] = time.time
) -> Outcome:
    """Run one attempt within its timeout. Whatever happens is in the outcome; only cancellation of the whole passes."""
    limit = surroundings.settings.engine.output_text_chars
    by = (surroundings.worker_id, surroundings.node_id, ray_task_id)
    record = _Record(started_at=clock(), clock=clock, limit=limit, by=by)
    reporter = surroundings.reporter(order)
    task = asyncio.current_task()
    assert task is not None
    deadline = asyncio.timeout(order.timeout_s)
    try:
        async with deadline:
            text = await _phases(order, surroundings, reporter, record)
    except TimeoutError as failure:
        said = f"the attempt did not end within {order.timeout_s:g} s"
        if not deadline.expired():
            said = f"something that the attempt waited for took too long: {failure}"
        error = ErrorInfo(code="TIMED_OUT", error_class="transient", message=said, retryable=True)
        outcome = record.outcome("timed_out" if deadline.expired() else record.undone, error=error)
    except asyncio.CancelledError as failure:
        if task.cancelling():
            said = "the attempt was stopped"
            error = ErrorInfo(code="CANCELLED", error_class="refused", message=said, retryable=False)
            outcome = record.outcome("cancelled", error=error)
        else:
            # Nobody asked for it: the tool let a cancellation of its own out. A stop would spend no retry, for ever.
            outcome = record.outcome("failed", error=ErrorInfo.from_exception(failure))
    except Exception as failure:  # noqa: BLE001 - the one place where an attempt's exceptions become values
        verdict = record.undone if isinstance(failure, Transient) else "failed"
        outcome = record.outcome(verdict, error=ErrorInfo.from_exception(failure))
    else:
        outcome = record.outcome("succeeded", output=text)
    await _last_words(reporter.close)
    log = reporter.text(limit)
    return replace(outcome, log=log) if log else outcome


async def _phases(order: AttemptOrder, surroundings: Surroundings, reporter: Reporter, record: _Record) -> str:
    with record.phase(Phase.PREPARE_ENV, reporter):
        # It may have waited so long that its scheduler has been given up, and its lease is somebody else's.
        is_old = not order.running and record.started_at - order.handed_at > LEASE_CHECK_S
        if is_old and not await surroundings.begin(order):
            raise Refused("LEASE_LOST", "the attempt came too late: its lease is gone")
        tool = await surroundings.tool(order.tool, order.registry_version)
        input_: Json = orjson.loads(order.input)
        if order.referred:
            outputs = await surroundings.outputs(order.task_id, order.referred)
            input_ = resolve(input_, {key: outputs[key] for key in order.referred}, pointer="/input")
        else:
            input_ = resolve(input_, {}, pointer="/input")
        input_ = checked(tool, input_)
        context = ToolContext(
            task_id=order.task_id,
            user_id=order.user_id,
            subtask=order.key,
            attempt=order.attempt,
            idempotency_key=order.sub_task_id,
            settings=surroundings.settings.tools,
            log=reporter,
            files=surroundings.files(order.task_id),
        )
    with record.phase(Phase.EXECUTING, reporter):
        started_at, ok, record.called = record.clock(), False, True
        try:
            record.result = await run_tool(tool, input_, context)
            ok = True
        finally:
            record.add(order.tool, "tool", started_at, ok)
    with record.phase(Phase.POST_PROCESS, reporter):
        text = orjson.dumps(sanitise(record.result.output)).decode()
        if len(text) > surroundings.settings.engine.output_max_bytes:
            largest = surroundings.settings.engine.output_max_bytes
            raise UserError("OUTPUT_TOO_LARGE", f"the output has {len(text)} bytes; at most {largest} are kept")
    return text


async def _last_words(close: Callable[[], Awaitable[None]]) -> None:
    """Flush the log, but never let a lost log line change how an attempt ended."""
    try:
        await close()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the outcome matters more than its log
        known = isinstance(error, Transient | TimeoutError)
        _log.warning("attempt.log_lost: %s", error, exc_info=not known)


def _head(text: str, limit: int) -> str:
    clean = clean_text(text)
    return clean if len(clean) <= limit else clean[:limit] + f"\n… {len(clean) - limit} more characters"
