"""The circuit breaker of a tool: a value that decides when calls stop, and when one is let through to look.

    closed ──5 failures in a row, or half of 10 calls or more in 60 s──▶ open
    open ──its cooldown is over and somebody asks──▶ half_open, with one probe
    half_open ──the probe succeeds──▶ closed
    half_open ──the probe fails──▶ open, for twice as long

It has no clock: ``now`` is seconds since the epoch, handed in. Every change gives a new breaker.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from rayloom.dag.outcome import Outcome

BreakerState = Literal["closed", "open", "half_open"]

BREAKER_OPEN: Final = "BREAKER_OPEN"
"""The code of what is not called because a breaker is open."""
SLOTS: Final = 60
"""Into so many parts the sliding window is divided."""
OTHERS_FAULT: Final = frozenset({"HTTP_429", BREAKER_OPEN})
"""Transient errors that don't speak against the callee: it asks this caller to wait, and works; or was never called."""
CALLEES_BUGS: Final = frozenset({"TOOL_CRASHED", "TOOL_OUTPUT_INVALID"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long. Times in seconds.

    ``calls_min``: of fewer calls in the window no share is taken. ``calm_s``: once closed for so long, the next
    cooldown is the first again. ``probe_s``: a probe that says nothing for so long is given up, another let through.
    """

    window_s: float = 60.0
    calls_min: int = 10
    failure_share: float = 0.5
    failures_in_a_row: int = 5
    cooldown_s: float = 5.0
    cooldown_max_s: float = 300.0
    calm_s: float = 600.0
    probe_s: float = 60.0

    def cooldown(self, openings: int) -> float:
        """How long to stay open after so many openings before this one."""
        return min(self.cooldown_max_s, self.cooldown_s * 2.0 ** min(openings, 1_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerView:
    """A breaker that is not closed, as everybody sees it.

    ``retry_at``: when the next call may be tried, in seconds since the epoch; None: not before it is closed by hand.
    """

    state: Literal["open", "half_open"]
    retry_at: float | None

    def state_at(self, now: float) -> BreakerState:
        """What to show: once its time has come an open breaker lets the next call through, as a half-open one does."""
        return "half_open" if self.wait_s(now) == 0 else self.state

    def wait_s(self, now: float) -> float | None:
        """Seconds until a call may be tried; None: nobody knows."""
        return None if self.retry_at is None else max(self.retry_at - now, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a call that was made went, for the breaker of what was called.

    ``by``: the subtask. ``succeeded``: None where it says nothing about the callee.
    """

    key: str
    by: str
    succeeded: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """See the module. ``openings``: how often in a row it opened. ``slots``: (number, calls, failures), oldest first.

    ``probe``: the subtask that was let through while half open, and is not over.
    """

    state: BreakerState = "closed"
    retry_at: float | None = None
    openings: int = 0
    closed_at: float = -math.inf
    in_a_row: int = 0
    slots: tuple[tuple[int, int, int], ...] = ()
    probe: str | None = None

    def view(self) -> BreakerView | None:
        """What others must know; None while it is closed."""
        return None if self.state == "closed" else BreakerView(state=self.state, retry_at=self.retry_at)

    def told(self, call: Call, *, now: float, policy: BreakerPolicy) -> Breaker:
        """A call is over. While it is not closed only the probe's word counts: the others began before it opened."""
        if self.state == "closed":
            return self if call.succeeded is None else self._counted(call.succeeded, now, policy)
        if self.state == "open" or call.by != self.probe:
            return self
        if call.succeeded is None:
            # It never came to the callee, or says nothing of it: the next one may look.
            return replace(self, probe=None, retry_at=now)
        return self.closed(now) if call.succeeded else self._opened(now, policy)

    def probed(self, by: str, *, now: float, policy: BreakerPolicy) -> Breaker | None:
        """Let this subtask through; None: it must wait. Whoever was let through may ask again."""
        if self.state == "closed":
            return self
        if self.retry_at is None or (now < self.retry_at and by != self.probe):
            return None
        return replace(self, state="half_open", probe=by, retry_at=now + policy.probe_s)

    def closed(self, now: float) -> Breaker:
        """Closed, by its probe or by hand: what was counted is forgotten."""
        return Breaker(openings=self.openings, closed_at=now)

    def opened_by_hand(self) -> Breaker:
        """Open until it is closed by hand."""
        return Breaker(state="open", openings=self.openings)

    def _counted(self, succeeded: bool, now: float, policy: BreakerPolicy) -> Breaker:
        number = math.floor(now * SLOTS / policy.window_s)
        slots = [slot for slot in self.slots if slot[0] > number - SLOTS]
        # Where a clock was set back, it counts on in the last slot.
        last = slots.pop() if slots and slots[-1][0] >= number else (number, 0, 0)
        slots.append((last[0], last[1] + 1, last[2] + (not succeeded)))
        in_a_row = 0 if succeeded else self.in_a_row + 1
        calls, failures = sum(slot[1] for slot in slots), sum(slot[2] for slot in slots)
        if in_a_row >= policy.failures_in_a_row or (
            not succeeded and calls >= policy.calls_min and failures >= policy.failure_share * calls
        ):
            calm = now - self.closed_at >= policy.calm_s
            return replace(self, openings=0 if calm else self.openings)._opened(now, policy)
        return replace(self, in_a_row=in_a_row, slots=tuple(slots))

    def _opened(self, now: float, policy: BreakerPolicy) -> Breaker:
        return Breaker(state="open", retry_at=now + policy.cooldown(self.openings), openings=self.openings + 1)


def breaker_key(name: str, type_: str) -> str:
    """Whose breaker a tool has: its own, and the tools of one MCP server share that of the server."""
    return name.partition(".")[0] if type_ == "MCP" else name


def said_of_callee(outcome: Outcome) -> bool | None:
    """What the end of an attempt says of what its tool called: it works, or it failed; None: nothing.

    A stop, a lost node, a dead worker or a wrong request speak against nobody. A worker that had to be killed at the
    attempt's timeout hung in its tool.
    """
    error = outcome.error
    if outcome.verdict == "succeeded":
        # A kept result says nothing of how the callee is now.
        return True if outcome.called else None
    if outcome.verdict == "timed_out":
        return False if outcome.called or not outcome.is_from_worker else None
    if outcome.verdict != "failed" or not outcome.called or error is None or error.code in OTHERS_FAULT:
        return None
    return False if error.error_class == "transient" or error.code in CALLEES_BUGS else None


def alternative_fault(name: str, chosen: str, alternatives: Mapping[str, str]) -> str | None:
    """Why ``chosen`` can't stand in for the tool ``name``, as it would lead back to it; None: it can."""
    seen = [name]
    while chosen not in seen:
        seen.append(chosen)
        if chosen not in alternatives:
            return None
        chosen = alternatives[chosen]
    return "the alternatives would go in a circle: " + " -> ".join([*seen, chosen])
