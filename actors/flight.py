"""The attempts that a scheduler has handed over and not heard of yet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from rayloom.actors.order import AttemptOrder, Thought
from rayloom.dag.breaker import BREAKER_OPEN
from rayloom.dag.errors import ErrorClass, ErrorInfo
from rayloom.dag.outcome import Outcome, Verdict
from rayloom.dag.resources import ResourceShape
from rayloom.db.attempts import Claimed

_log = logging.getLogger(__name__)

LARGE_CHARS = 64 * 1024
"""A larger input is not kept beside the lane's copy."""

ABANDON_S = 60.0
"""How long a killed attempt is waited for: a node that has died is noticed by Ray before that."""


class Running(Protocol):
    """An attempt that has been handed over."""

    @property
    def ray_task_id(self) -> str:
        """The id of its Ray task; empty when it has none."""

    def stop(self, *, force: bool) -> None:
        """Ask it to stop, or kill its worker. It still ends with an outcome."""


class Lane(Protocol):
    """Where attempts are run."""

    def start(self, order: AttemptOrder, shape: ResourceShape, done: Callable[[Outcome], None]) -> Running:
        """Hand an attempt over; ``done`` is called in the caller's event loop, once, whatever happens."""

    def can_spare(self, count: int) -> None:
        """As long as more than ``count`` attempts are in flight, nobody waits for the end of the next one."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The tool that is called in place of the one whose breaker is open, and when to try again if it can't be."""

    tool: str
    wait_s: float


class _NeverStarted:
    """In place of an attempt that its lane refused."""

    ray_task_id = ""

    def stop(self, *, force: bool) -> None:
        """Nothing runs."""


def _nothing() -> None:
    """What is left to do for an attempt that has ended."""


@dataclass(slots=True, weakref_slot=True)
class Flying:
    """One attempt in flight. ``stopping_at``: when it was asked to stop (monotonic seconds); ``killed_at``: by force.

    ``overran``: because it did not stop at its timeout. ``hopeless``: because no node can run it. ``calls``: the tool
    that it really calls; ``is_probe``: to see for its breaker whether the callee is back. ``turns``: it ends so that
    its subtask turns to its fallback.
    """

    claimed: Claimed
    shape: ResourceShape
    running: Running
    stopping_at: float | None = None
    killed_at: float | None = None
    overran: bool = False
    hopeless: bool = False
    calls: str = ""
    is_probe: bool = False
    turns: bool = False
    abandon: Callable[[], None] = _nothing
    """Wait for its end no longer."""


@dataclass(slots=True)
class Flight:
    """Every attempt in flight, by subtask id."""

    lane: Lane
    on_end: Callable[[Flying, Outcome], None]
    attempts: dict[str, Flying] = field(default_factory=dict)
    unclaimed: set[tuple[str, int]] = field(default_factory=set)
    """What was claimed and not started after all, since the reaper looked last: (subtask id, attempt)."""

    def start(
        self,
        claimed: Claimed,
        shape: ResourceShape,
        *,
        registry_version: int,
        stand_in: StandIn | None = None,
        is_probe: bool = False,
    ) -> None:
        """Hand an attempt over. ``stand_in``: what it calls in place of its tool. ``is_probe``: see `Flying`."""
        order = AttemptOrder(
            sub_task_id=claimed.sub_task_id,
            task_id=claimed.task_id,
            user_id=claimed.user_id,
            key=claimed.key,
            tool=claimed.tool,
            registry_version=registry_version,
            attempt=claimed.attempt,
            timeout_s=claimed.timeout_s,
            input=claimed.input,
            referred=claimed.referred,
            running=claimed.running,
            handed_at=time.time(),
            cacheable=claimed.cacheable,
            alternative=stand_in.tool if stand_in else "",
            breaker_wait_s=stand_in.wait_s if stand_in else 0.0,
            input_blob=claimed.input_blob,
            thought=None if claimed.tool else _thought(claimed),
        )
        flying: Flying
        has_ended, handed_at = False, order.handed_at

        def ended(outcome: Outcome) -> None:
            nonlocal has_ended
            if has_ended:
                # One that was abandoned has ended after all.
                return
            has_ended = True
            # Else it would hold itself, until the collector of garbage comes by.
            flying.abandon = _nothing
            if self.attempts.get(claimed.sub_task_id) is flying:
                del self.attempts[claimed.sub_task_id]
            self.on_end(flying, outcome)

        try:
            running = self.lane.start(order, shape, ended)
        except Exception as error:  # noqa: BLE001 - its lease is taken: whatever is wrong, it must end with an outcome
            _log.warning("attempt.not_started", exc_info=True, extra={"sub_task_id": claimed.sub_task_id})
            asyncio.get_running_loop().call_soon(ended, _refused(error))
            running = _NeverStarted()
        if len(claimed.input) > LARGE_CHARS:
            # It is with the lane now.
            claimed = replace(claimed, input="")
        flying = Flying(
            claimed,
            shape,
            running,
            calls=order.calls,
            is_probe=is_probe,
            abandon=lambda: ended(_abandoned(handed_at, running.ray_task_id)),
        )
        self.attempts[claimed.sub_task_id] = flying

    def stop(self, sub_task_id: str, attempt: int | None = None) -> bool:
        """Ask an attempt to stop; False when it is not here (any more)."""
        flying = self.attempts.get(sub_task_id)
        if flying is None or (attempt is not None and flying.claimed.attempt != attempt):
            return False
        if flying.stopping_at is None:
            flying.stopping_at = time.monotonic()
            flying.running.stop(force=False)
        return True

    def stop_all(self, leases: Iterable[tuple[str, int]], *, grace_s: float) -> None:
        """Ask these (subtask id, attempt) to stop, and kill those that are still there after ``grace_s`` seconds."""
        if [lease for lease in leases if self.stop(*lease)]:
            asyncio.get_running_loop().call_later(grace_s + 0.3, self.kill_stubborn, grace_s + 0.2)

    def kill(self, flying: Flying) -> None:
        """Kill the worker of an attempt."""
        if flying.killed_at is None:
            flying.killed_at = time.monotonic()
            _log.warning("attempt.killed", extra={"subtask": flying.claimed.key, "task_id": flying.claimed.task_id})
            flying.running.stop(force=True)

    def kill_stubborn(self, grace_s: float) -> None:
        """Kill those that were asked to stop more than ``grace_s`` seconds ago; abandon those that survive even that.

        Ray kills by asking the worker: one whose process is stopped (SIGSTOP, a debugger) does not hear it.
        """
        now = time.monotonic()
        for flying in list(self.attempts.values()):
            if flying.killed_at is not None and now - flying.killed_at > ABANDON_S:
                _log.error(
                    "attempt.abandoned", extra={"subtask": flying.claimed.key, "task_id": flying.claimed.task_id}
                )
                flying.abandon()
            elif flying.stopping_at is not None and now - flying.stopping_at > grace_s:
                self.kill(flying)

    def leases(self) -> list[tuple[str, int]]:
        """(subtask id, attempt) of everything in flight."""
        return [(id_, flying.claimed.attempt) for id_, flying in self.attempts.items()]

    def __len__(self) -> int:
        return len(self.attempts)

    def __iter__(self) -> Iterator[Flying]:
        return iter(list(self.attempts.values()))


def _thought(claimed: Claimed) -> Thought:
    return Thought(
        task_type=claimed.task_type,
        instruction=claimed.instruction,
        skills=claimed.skills,
        rules=claimed.rules,
        key_id=claimed.key_id,
    )


def never_started(claimed: Claimed, shape: ResourceShape, *, turns: bool = False) -> Flying:
    """An attempt whose lease was taken, and that is not handed over: its commit frees the lease."""
    return Flying(claimed, shape, _NeverStarted(), turns=turns)


def turning(tool: str, fallback: str) -> Outcome:
    """The outcome of an attempt that is not made, as the breaker of its tool is open and there is a fallback."""
    message = f"the breaker of {tool} is open: the subtask turns to its fallback {fallback} at once"
    return _in_its_place("failed", BREAKER_OPEN, "transient", message)


def unschedulable(shape: ResourceShape) -> Outcome:
    """The outcome of an attempt that no node can run."""
    wanted = ", ".join(f"{name} {amount:g}" for name, amount in shape.amounts())
    message = f"no node that the cluster has or could start offers what it asks for: {wanted}"
    return _in_its_place("failed", "UNSCHEDULABLE", "user", message)


def unreadable(why: str) -> Outcome:
    """What is said of an attempt whose input PostgreSQL can't give."""
    return _in_its_place("failed", "INPUT_UNREADABLE", "user", f"the database can't give its input: {why[:500]}")


def _abandoned(started_at: float, ray_task_id: str) -> Outcome:
    """What is said of an attempt whose worker can't even be killed."""
    message = "the worker process that ran the attempt does not answer, and could not be killed"
    gone = _in_its_place("cancelled", "WORKER_DIED", "transient", message, started_at=started_at)
    return replace(gone, ray_task_id=ray_task_id)


def _refused(error: Exception) -> Outcome:
    """What it amounts to that a lane raised: a request that no lane takes, or a lane that is away."""
    if isinstance(error, ValueError | TypeError):
        return _in_its_place("failed", "NOT_STARTABLE", "bug", str(error)[:500])
    message = f"the attempt could not be handed over: {type(error).__name__}: {str(error)[:300]}"
    return _in_its_place("lost", "LANE_UNAVAILABLE", "transient", message)


def _in_its_place(
    verdict: Verdict, code: str, error_class: ErrorClass, message: str, *, started_at: float | None = None
) -> Outcome:
    """The end of an attempt that no worker tells. It took no time, unless it is known when it was started."""
    now = time.time()
    error = ErrorInfo(code=code, error_class=error_class, message=message, retryable=error_class == "transient")
    return Outcome(verdict=verdict, error=error, started_at=now if started_at is None else started_at, finished_at=now)
