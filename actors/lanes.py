"""The own lane: one Ray task for each attempt, named after it, with its resource request.

Ray never retries an attempt by itself (``max_retries=0``): whether there is another one is decided by our own rules,
from an outcome that says what happened.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions as ray_errors

from rayloom.actors.order import AttemptOrder
from rayloom.actors.parcel import pack, unpack
from rayloom.actors.settings import WorkerSettings
from rayloom.actors.worker import Worker
from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome, Verdict
from rayloom.dag.resources import ResourceShape

if TYPE_CHECKING:
    # Not in a worker: it needs nothing of the scheduler's side.
    from rayloom.actors.flight import Running

_worker: Worker | None = None


def _run_in_worker(settings: WorkerSettings, packed: bytes) -> bytes:
    global _worker
    context = ray.get_runtime_context()
    # The same object as long as it is the same function: no need to compare what is in it.
    if _worker is None or _worker.settings is not settings:
        _worker = Worker(settings, worker_id=context.get_worker_id(), node_id=context.get_node_id())
    if not packed:
        _worker.warm()
        return packed
    return pack(_worker.run(AttemptOrder.unpack(packed), ray_task_id=str(context.get_task_id())))


class OwnLane:
    """One Ray task an attempt. Belongs to the event loop that it is made in."""

    def __init__(self, settings: WorkerSettings) -> None:
        # Settings travel once, with the function, not with every attempt.
        def attempt(packed: bytes) -> bytes:
            return _run_in_worker(settings, packed)

        attempt.__name__ = attempt.__qualname__ = "rayloom_attempt"
        self._task: Any = ray.remote(max_retries=0, max_calls=0)(attempt)
        self._options: dict[ResourceShape, Mapping[str, Any]] = {}
        self._ends = _Ends(asyncio.get_running_loop())
        self._warming: list[Any] = []

    def start(self, order: AttemptOrder, shape: ResourceShape, done: Callable[[Outcome], None]) -> Running:
        """Hand an attempt to Ray."""
        options = self._options.get(shape)
        if options is None:
            options = self._options.setdefault(shape, ray_options(shape))
        ref = self._task.options(name=order.ray_name, **options).remote(order.pack())
        started_at = time.time()
        ref.future().add_done_callback(lambda future: self._ends.add(done, _outcome(future, started_at)))
        return _RayAttempt(ref)

    def warm(self, shape: ResourceShape, count: int) -> None:
        """Have ``count`` workers started and made ready at the same time, so that the first attempts find them."""
        options = self._task.options(name="rayloom:warm-up", **ray_options(shape))
        self._warming = [options.remote(b"") for _ in range(count)]


class _Ends:
    """Brings ends from Ray's threads into the event loop, waking it once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: deque[tuple[Callable[[Outcome], None], Outcome]] = deque()
        self._waking = False

    def add(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        """Called in a thread of Ray's."""
        self._ended.append((done, outcome))
        # A stale True is harmless: who set it has still to empty the queue. The loop is closed when the process ends.
        if not self._waking and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False
        while self._ended:
            done, outcome = self._ended.popleft()
            done(outcome)


class _RayAttempt:
    def __init__(self, ref: Any) -> None:
        self._ref = ref

    def stop(self, *, force: bool) -> None:
        """Ask it to stop, or kill its worker."""
        ray.cancel(self._ref, force=force, recursive=True)


def ray_options(shape: ResourceShape) -> Mapping[str, Any]:
    """A resource shape in the words of ``.options()``."""
    options: dict[str, Any] = {"num_cpus": shape.cpus, "num_gpus": shape.gpus}
    if shape.memory_bytes:
        options["memory"] = shape.memory_bytes
    if shape.custom:
        options["resources"] = dict(shape.custom)
    if shape.labels:
        options["label_selector"] = dict(shape.labels)
    return options


def _outcome(future: Any, started_at: float) -> Outcome:
    """What a Ray task gave: its own outcome, or the outcome that its death amounts to."""
    error = future.exception()
    if error is None:
        return unpack(future.result())
    verdict, info = _death(error)
    return Outcome(verdict=verdict, error=info, started_at=started_at, finished_at=time.time())


def _death(error: BaseException) -> tuple[Verdict, ErrorInfo]:
    if isinstance(error, ray_errors.TaskCancelledError):
        return "cancelled", ErrorInfo(
            code="CANCELLED", error_class="refused", message="the attempt was stopped", retryable=False
        )
    if isinstance(error, ray_errors.OutOfMemoryError):
        return "failed", _transient("OUT_OF_MEMORY", "the node ran out of memory and Ray killed the attempt's worker")
    if isinstance(error, ray_errors.NodeDiedError | ray_errors.OwnerDiedError | ray_errors.ObjectLostError):
        return "lost", _transient("NODE_LOST", "the node that ran the attempt was lost")
    if isinstance(error, ray_errors.WorkerCrashedError):
        return "failed", _transient("WORKER_DIED", "the worker process that ran the attempt died")
    if isinstance(error, ray_errors.TaskUnschedulableError):
        return "failed", ErrorInfo(code="UNSCHEDULABLE", error_class="user", message=str(error)[:500], retryable=False)
    if isinstance(error, ray_errors.RaySystemError | ray_errors.RuntimeEnvSetupError):
        return "lost", _transient("RAY_FAILED", f"{type(error).__name__}: {str(error)[:300]}")
    return "failed", ErrorInfo.from_exception(error)


def _transient(code: str, message: str) -> ErrorInfo:
    return ErrorInfo(code=code, error_class="transient", message=message, retryable=True)
