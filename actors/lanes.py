"""The own lane: one Ray task for each attempt, named after its tool, with its resource request.

Ray never retries an attempt by itself (``max_retries=0``): whether there is another one is decided by our own rules,
from an outcome that says what happened.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
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
from rayloom.db import faults

if TYPE_CHECKING:
    # Not in a worker: it needs nothing of the scheduler's side.
    from rayloom.actors.flight import Running

_log = logging.getLogger(__name__)

COLLECT_S = 0.04
"""How long ends are collected while there is plenty in flight."""
LOOK_AGAIN_S = 0.01
"""How soon a new attempt is seen by the thread that waits for the end of earlier ones."""
KNOWN_SHAPES = 1_024
YOUNG_S = 0.5
"""An attempt that lasts longer is one that Ray calls back for."""

_worker: Worker | None = None


def _run_in_worker(settings: WorkerSettings, packed: bytes) -> bytes:
    global _worker
    context = ray.get_runtime_context()
    # The same object as long as it is the same life of the scheduler: only another one's is to be compared.
    if _worker is not None and _worker.settings is not settings:
        if _worker.settings == settings:
            _worker.settings = settings
        else:
            _worker.close()
            _worker = None
    if _worker is None:
        _worker = Worker(settings, worker_id=context.get_worker_id(), node_id=context.get_node_id())
    if not packed:
        _worker.warm()
        return packed
    order = AttemptOrder.unpack(packed)
    return pack(_worker.run(order, ray_task_id=str(context.get_task_id())))


class OwnLane:
    """One Ray task an attempt. Belongs to the event loop that it is made in."""

    def __init__(self, settings: WorkerSettings) -> None:
        # Settings travel once, with the function, not with every attempt.
        def attempt(packed: bytes) -> bytes:
            return _run_in_worker(settings, packed)

        attempt.__name__ = attempt.__qualname__ = "rayloom_attempt"
        self._task: Any = ray.remote(max_retries=0, max_calls=0)(attempt)
        self._options = lru_cache(maxsize=KNOWN_SHAPES)(self._checked_options)
        self._ends = _Ends(asyncio.get_running_loop())
        self._warming: list[Any] = []

    def start(self, order: AttemptOrder, shape: ResourceShape, done: Callable[[Outcome], None]) -> Running:
        """Hand an attempt to Ray."""
        if faults.injector is not None and faults.injector.strikes_now(faults.LANE, "before"):
            raise ConnectionError("fault injected: the attempt could not be handed over")
        options = self._options(shape)
        # What .options(...).remote(...) comes to, without making and checking a class for every attempt.
        ref = self._task._remote(args=(order.pack(),), kwargs={}, name=order.ray_name, **options)
        self._ends.watch(_Watched(ref, done, time.time()))
        return _RayAttempt(ref)

    def _checked_options(self, shape: ResourceShape) -> Mapping[str, Any]:
        # `_remote` knows nothing of what the function was declared with, and Ray's own default are three retries.
        options = {**ray_options(shape), "max_retries": 0}
        self._task.options(**options)  # raises if Ray can't take them
        return options

    def can_spare(self, count: int) -> None:
        """As long as more than ``count`` attempts are in flight, nobody waits for the end of the next one."""
        self._ends.spare = count

    def warm(self, shape: ResourceShape, count: int) -> None:
        """Have ``count`` workers started and made ready at the same time, so that the first attempts find them."""
        options = self._task.options(name="rayloom:warm-up", **ray_options(shape))
        self._warming = [options.remote(b"") for _ in range(count)]


@dataclass(frozen=True, slots=True)
class _Watched:
    """A Ray task whose end is waited for. ``started_at``: when it was handed over, in seconds since the epoch."""

    ref: Any
    done: Callable[[Outcome], None]
    started_at: float


class _Ends:
    """Collects ends in a thread, many at a time, and brings them into the event loop, waking it once for all.

    A callback of Ray's for each end would cost the scheduler as much again as its start, so it is kept for attempts
    that last. ``spare``: see `OwnLane.can_spare`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fresh: list[_Watched] = []
        self._new: queue.SimpleQueue[list[_Watched]] = queue.SimpleQueue()
        self._ended: deque[tuple[Callable[[Outcome], None], Outcome]] = deque()
        self._waking = False
        self._never = threading.Event()
        self.spare = 0
        threading.Thread(target=self._collect, name="rayloom-ends", daemon=True).start()

    def watch(self, watched: _Watched) -> None:
        """Its ``done`` will be called in the event loop, once."""
        # Those that are started in one step are seen together: else the end of the first would be told by itself.
        if not self._fresh:
            self._loop.call_soon(self._hand_over)
        self._fresh.append(watched)

    def _hand_over(self) -> None:
        fresh, self._fresh = self._fresh, []
        self._new.put(fresh)

    def _collect(self) -> None:
        young: dict[Any, _Watched] = {}
        while not self._loop.is_closed():
            try:
                self._take_new(young)
                refs = _ended(list(young), at_least=len(young) - self.spare)
                self._add([young.pop(ref) for ref in refs])
                last = time.time() - YOUNG_S
                for watched in [each for each in young.values() if each.started_at < last]:
                    del young[watched.ref]
                    watched.ref.future().add_done_callback(partial(self._old_one_ended, watched))
            except Exception:  # noqa: BLE001 - while this process lives there are ends to be told
                _log.exception("lane.collecting_failed")
                self._never.wait(COLLECT_S)

    def _take_new(self, young: dict[Any, _Watched]) -> None:
        """Wait for something to watch, if there is nothing."""
        while not young or not self._new.empty():
            young.update((watched.ref, watched) for watched in self._new.get())

    def _old_one_ended(self, watched: _Watched, _future: Any) -> None:
        """Called in a thread of Ray's."""
        self._add([watched])

    def _add(self, ended: Sequence[_Watched]) -> None:
        self._ended.extend(zip((each.done for each in ended), _outcomes(ended), strict=True))
        # A stale True is harmless: who set it has still to empty the queue. The loop is closed when the process ends.
        if ended and not self._waking and not self._loop.is_closed():
            self._waking = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._waking = False
        while self._ended:
            done, outcome = self._ended.popleft()
            done(outcome)


def _ended(refs: list[Any], *, at_least: int) -> list[Any]:
    """All of them that have ended, as soon as there are so many; after a moment, fewer or none."""
    if at_least > 1:
        ray.wait(refs, num_returns=at_least, timeout=COLLECT_S)
    else:
        ray.wait(refs, num_returns=1, timeout=LOOK_AGAIN_S)
    ended, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return ended


class _RayAttempt:
    def __init__(self, ref: Any) -> None:
        self._ref = ref

    @property
    def ray_task_id(self) -> str:
        """The id of its Ray task."""
        task_id: str = self._ref.task_id().hex()
        return task_id

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


def _outcomes(ended: Sequence[_Watched]) -> list[Outcome]:
    """What Ray tasks that have ended gave, each: its own outcome, or the outcome that its death amounts to."""
    try:
        if faults.injector is not None and faults.injector.strikes_now(faults.LANE, "after"):
            raise ray_errors.WorkerCrashedError()  # the outcome is lost, for one of them or for all
        return [unpack(packed) for packed in ray.get([each.ref for each in ended])]
    except Exception as error:  # noqa: BLE001 - the one place where Ray's exceptions become values
        if len(ended) > 1:
            # One of them is at fault; which one is only seen one by one.
            return [outcome for each in ended for outcome in _outcomes([each])]
        verdict, info = _death(error)
        now = time.time()
        return [
            Outcome(
                verdict=verdict,
                error=info,
                started_at=each.started_at,
                finished_at=now,
                ray_task_id=each.ref.task_id().hex(),
            )
            for each in ended
        ]


_NODE_LOST = (
    ray_errors.NodeDiedError,
    ray_errors.OwnerDiedError,
    ray_errors.ObjectLostError,
    ray_errors.LocalRayletDiedError,
)
_RAY_FAILED = (ray_errors.RaySystemError, ray_errors.RuntimeEnvSetupError, ray_errors.RpcError)


def _death(error: BaseException) -> tuple[Verdict, ErrorInfo]:
    if isinstance(error, ray_errors.TaskCancelledError):
        return "cancelled", ErrorInfo(
            code="CANCELLED", error_class="refused", message="the attempt was stopped", retryable=False
        )
    if isinstance(error, ray_errors.OutOfMemoryError):
        return "failed", _transient("OUT_OF_MEMORY", "the node ran out of memory and Ray killed the attempt's worker")
    if isinstance(error, _NODE_LOST):
        return "lost", _transient("NODE_LOST", "the node that ran the attempt was lost")
    if isinstance(error, ray_errors.WorkerCrashedError):
        return "failed", _transient("WORKER_DIED", "the worker process that ran the attempt died")
    if isinstance(error, ray_errors.TaskUnschedulableError):
        return "failed", ErrorInfo(code="UNSCHEDULABLE", error_class="user", message=str(error)[:500], retryable=False)
    if isinstance(error, ray_errors.ObjectStoreFullError | ray_errors.OutOfDiskError):
        return "failed", _transient("NO_SPACE", f"the node had no room for the outcome: {str(error)[:300]}")
    if isinstance(error, _RAY_FAILED):
        return "lost", _transient("RAY_FAILED", f"{type(error).__name__}: {str(error)[:300]}")
    if isinstance(error, ray_errors.RayError) and not isinstance(error, ray_errors.RayTaskError):
        # Whatever it is, it is Ray's, and another attempt may go better.
        return "failed", _transient("RAY_FAILED", f"{type(error).__name__}: {str(error)[:300]}")
    return "failed", ErrorInfo.from_exception(error)


def _transient(code: str, message: str) -> ErrorInfo:
    return ErrorInfo(code=code, error_class="transient", message=message, retryable=True)
