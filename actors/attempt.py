"""One attempt, from its order to its outcome: PREPARE_ENV, EXECUTING, POST_PROCESS. It never raises.

Knows nothing of Ray: what runs it, and in which process, is the business of `lanes`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import orjson

from rayloom.actors.attempt_record import AttemptRecord, ModelCallTold, Output
from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import WorkerSettings
from rayloom.dag.breaker import BREAKER_OPEN, Call
from rayloom.dag.cache_key import cache_key, input_digest
from rayloom.dag.errors import ErrorInfo, Refused, Transient, UserError
from rayloom.dag.model import ModelPort
from rayloom.dag.outcome import Outcome
from rayloom.dag.output import sanitise
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.references import Outputs, resolve
from rayloom.dag.states import Phase
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import checked, run_tool
from rayloom.tools.ports import ContentsPort, FilesPort, LogPort
from rayloom.tools.tool import Tool, ToolContext, ToolResult, ToolSpec

if TYPE_CHECKING:
    from rayloom.actors.shared_calls import SharedCalls

_log = logging.getLogger(__name__)

LEASE_CHECK_S = 2.0
"""An attempt that Ray kept waiting for longer asks whether its lease still stands."""


FETCH_PART = 0.9
"""Blobs are waited for for this part of the time that an attempt has left."""
KEEP_S = 20.0
"""A large output is given to the blob store for so long, and then to the scheduler."""


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

    async def tools(self, registry_version: int) -> ToolSnapshot:
        """Every tool, as the registry knows them at this version or later."""

    def models(self, order: AttemptOrder, on_call: Callable[[ModelCallTold], None]) -> ModelPort:
        """The models, on the account of whose attempt it is; ``on_call`` is told of each call. Raises Refused."""

    async def report(self, call: Call) -> None:
        """Tell the registry how a call went that a model made by itself. Never raises."""

    async def outputs(self, task_id: str, keys: Sequence[str], *, within_s: float) -> Outputs:
        """What subtasks of a task that are done have given, by their ids in the plan.

        Raises Transient while the blob store is away, or does not give what is large within so many seconds.
        """

    async def content(self, sha256: str, *, within_s: float) -> bytes:
        """What the blob store has under this name. Raises Transient while it is away, and when it is too slow."""

    async def keep(self, data: bytes) -> str:
        """Put something into the blob store; gives its name there. Raises Transient while it is away."""

    async def begin(self, order: AttemptOrder) -> bool:
        """Say that the attempt has begun. False: its lease is gone."""

    def reporter(self, order: AttemptOrder) -> Reporter:
        """A reporter of its own for one attempt."""

    def files(self, task_id: str) -> FilesPort:
        """The workspace of a task."""

    def contents(self) -> ContentsPort:
        """What the blob store keeps."""

    def shared_calls(self) -> SharedCalls | None:
        """The results that are kept; None where none are."""


async def run_attempt(
    order: AttemptOrder, surroundings: Surroundings, *, ray_task_id: str = "", clock: Callable[[], float] = time.time
) -> Outcome:
    """Run one attempt within its timeout. Whatever happens is in the outcome; only cancellation of the whole passes."""
    limit = surroundings.settings.engine.output_text_chars
    by = (surroundings.worker_id, surroundings.node_id, ray_task_id)
    record = AttemptRecord(started_at=clock(), clock=clock, limit=limit, by=by)
    reporter = surroundings.reporter(order)
    task = asyncio.current_task()
    assert task is not None
    deadline = asyncio.timeout(order.timeout_s)
    try:
        async with deadline:
            output = await _phases(order, surroundings, reporter, record, deadline)
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
        is_away = isinstance(failure, Transient) and failure.code != BREAKER_OPEN
        verdict = record.undone if is_away else "failed"
        outcome = record.outcome(verdict, error=ErrorInfo.from_exception(failure))
    else:
        outcome = record.outcome("succeeded", output=output)
    await _last_words(reporter.close)
    log = reporter.text(limit)
    return replace(outcome, log=log) if log else outcome


async def _phases(
    order: AttemptOrder,
    surroundings: Surroundings,
    reporter: Reporter,
    record: AttemptRecord,
    deadline: asyncio.Timeout,
) -> Output:
    with record.phase(Phase.PREPARE_ENV, reporter.phase):
        # It may have waited so long that its scheduler has been given up, and its lease is somebody else's.
        is_old = not order.running and record.started_at - order.handed_at > LEASE_CHECK_S
        if is_old and not await surroundings.begin(order):
            raise Refused("LEASE_LOST", "the attempt came too late: its lease is gone")
        tool = None
        if order.thought is None:
            tool = await surroundings.tool(order.calls, order.registry_version)
        # A blob store that is silent must not let the time run out: that would spend a retry.
        input_: Json = orjson.loads(
            await surroundings.content(order.input_blob, within_s=_part_of(deadline))
            if order.input_blob
            else order.input
        )
        if order.referred:
            outputs = await surroundings.outputs(order.task_id, order.referred, within_s=_part_of(deadline))
            values = {key: outputs.values[key] for key in order.referred}
            input_ = resolve(input_, values, pointer="/input", nothing=outputs.nothing)
        else:
            input_ = resolve(input_, {}, pointer="/input")
        context = ToolContext(
            task_id=order.task_id,
            user_id=order.user_id,
            subtask=order.key,
            attempt=order.attempt,
            idempotency_key=order.sub_task_id,
            settings=surroundings.settings.tools,
            log=reporter,
            files=surroundings.files(order.task_id),
            contents=surroundings.contents(),
        )
        if tool is None:
            # Most workers never think, and need not wait for what it takes.
            from rayloom.actors.thinking import thinker

            tool = await thinker(order, input_, surroundings, context, record)
        input_ = checked(tool, input_) if not order.alternative else _fitting(tool, input_, order, reporter)
    with record.phase(Phase.EXECUTING, reporter.phase):
        name = order.calls or tool.spec.name
        # What the audit is read from, besides the row of the attempt itself.
        told: JsonObject = {"version": tool.spec.version, "input_sha256": input_digest(input_)}
        started_at, ok = record.clock(), False

        async def make() -> ToolResult:
            record.called = not record.is_thought
            return await run_tool(tool, input_, context)

        try:
            calls = surroundings.shared_calls() if is_shared(order, tool.spec) else None
            if calls is None:
                record.result = await make()
            else:
                key = cache_key(tool=name, version=tool.spec.version, input=input_, scope=_scope(order, tool.spec))
                record.result, told["cache"] = await calls.call(key, make)
            ok = True
        finally:
            instead: JsonObject = {"instead_of": order.tool} if order.alternative else {}
            if not record.called:
                told["called"] = False
            record.add(name, "tool" if order.calls else "model", started_at, ok, **instead, **told)
    with record.phase(Phase.POST_PROCESS, reporter.phase):
        made = orjson.dumps(sanitise(record.result.output))
        largest = surroundings.settings.engine.output_max_bytes
        if len(made) > largest:
            raise UserError("OUTPUT_TOO_LARGE", f"the output has {len(made)} bytes; at most {largest} are kept")
        if not deadline.expired():
            # The tool is done: keeping what it made has a time of its own.
            deadline.reschedule(None)
        return await _placed(made, surroundings, reporter)


def _part_of(deadline: asyncio.Timeout) -> float:
    """So many seconds, of those that are left, may be spent on waiting for blobs."""
    at = deadline.when()
    assert at is not None
    return max(FETCH_PART * (at - asyncio.get_running_loop().time()), 0.0)


async def _placed(made: bytes, surroundings: Surroundings, reporter: Reporter) -> Output:
    """An output where it belongs: a large one is durable in the blob store before anybody hears of it.

    While the store is away it goes with the outcome, as a small one does. Its tool has run, and must not run again
    only for that.
    """
    if len(made) > surroundings.settings.blobs.inline_max_bytes:
        try:
            async with asyncio.timeout(KEEP_S):
                return Output(blob=await surroundings.keep(made), size=len(made))
        except (Transient, TimeoutError) as away:
            why = away.message if isinstance(away, Transient) else f"it did not answer within {KEEP_S:g} s"
            reporter.line(f"the blob store is away ({why}): the output goes into its row", level="WARNING")
    return Output(text=made.decode(), size=len(made))


def is_shared(order: AttemptOrder, spec: ToolSpec) -> bool:
    """Whether the result of an equal call will do."""
    return not spec.uses_workspace and (order.cacheable or (spec.deterministic and not spec.instant))


def _scope(order: AttemptOrder, spec: ToolSpec) -> str:
    """Whom a kept result may serve: its user, or, with an empty scope, all users.

    An input that holds the output of another subtask holds data of its user, whatever the tool says.
    """
    return "" if spec.shared_cache and spec.deterministic and not order.referred else order.user_id


def _fitting(tool: Tool, input_: Json, order: AttemptOrder, reporter: Reporter) -> dict[str, Json]:
    """The input for the tool that stands in for another. Raises Transient where it does not fit: so it has to wait."""
    try:
        fitting = checked(tool, input_)
    except UserError as error:
        message = f"the breaker of {order.tool} is open, and its alternative can't take the input: {error.message}"
        raise Transient(BREAKER_OPEN, message, retry_after_s=order.breaker_wait_s) from error
    reporter.line(f"the breaker of {order.tool} is open: {order.alternative} is called in its place", level="WARNING")
    return fitting


async def _last_words(close: Callable[[], Awaitable[None]]) -> None:
    """Flush the log, but never let a lost log line change how an attempt ended."""
    try:
        await close()
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the outcome matters more than its log
        known = isinstance(error, Transient | TimeoutError)
        _log.warning("attempt.log_lost: %s", error, exc_info=not known)
