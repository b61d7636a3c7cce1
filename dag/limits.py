"""The limits of a user as arithmetic: what was used in the last minute and in all, and what may start now.

Everything is a value and the time is handed in, as seconds of any clock that never goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from rayloom.dag.amount import NOTHING, Amount, nano
from rayloom.dag.token_port import Limited, Quota

WINDOW_S: Final = 60
ASK_AGAIN_MIN_S: Final = 0.25
ASK_AGAIN_BUSY_S: Final = 1.0
"""A place among concurrent attempts may become free at any moment: ask again within this."""
ASK_AGAIN_SPENT_S: Final = 2.0
"""Nothing but a raised limit helps; whoever raised it does not want to wait longer than this."""
ASK_AGAIN_MAX_S: Final = 10.0
"""Even when a window has long to go its limit may be raised before."""


@dataclass(frozen=True, slots=True)
class Window:
    """Amounts of the last minute, by the whole second, oldest first.

    An amount counts until the minute after the *end* of its second is over. So no span of 60 seconds, wherever it
    starts, ever holds more than was let through; the price is that room comes up to one second late.
    """

    seconds: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, amounts: Iterable[tuple[float, int]], *, now_s: float) -> Window:
        """A window of ``(at_s, amount)`` pairs in any order, as read from a record."""
        window = cls()
        for at_s, amount in sorted(amounts):
            window = window.add(amount, now_s=at_s)
        return replace(window, seconds=window._live(now_s))

    def add(self, amount: int, *, now_s: float) -> Window:
        """The window after ``amount`` more. What is too old to count is let go of."""
        live = self._live(now_s)
        if amount <= 0:
            return Window(live)
        second = math.floor(now_s)
        if live and live[-1][0] >= second:
            return Window((*live[:-1], (live[-1][0], live[-1][1] + amount)))
        return Window((*live, (second, amount)))

    def without(self, amount: int, *, at_s: float) -> Window:
        """The window without ``amount`` of what was added at ``at_s``, as long as that counts."""
        second = math.floor(at_s)
        left = ((at, held - amount if at == second else held) for at, held in self.seconds)
        return Window(tuple((at, held) for at, held in left if held > 0))

    def total(self, *, now_s: float) -> int:
        """What counts now."""
        return sum(amount for _, amount in self._live(now_s))

    def room_in_s(self, wanted: int, limit: int, *, now_s: float) -> float:
        """In how many seconds ``wanted`` more fit under ``limit``: 0 when they do now, infinity when never."""
        if wanted > limit:
            return math.inf
        live = self._live(now_s)
        excess = sum(amount for _, amount in live) + wanted - limit
        for second, amount in live:
            if excess <= 0:
                break
            excess -= amount
            if excess <= 0:
                return max(second + 1 + WINDOW_S - now_s, 0.0)
        return 0.0

    def _live(self, now_s: float) -> tuple[tuple[int, int], ...]:
        for index, (second, _) in enumerate(self.seconds):
            if second + 1 + WINDOW_S > now_s:
                return self.seconds[index:]
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What counts against somebody: what runs now, starts and tokens of the last minute, what was used in all.

    Of a user ``concurrent`` and ``requests`` are attempts; of a key or a model, calls of models. ``reserved``: what
    calls under way may use at most; it is no part of ``used``.
    """

    concurrent: int = 0
    requests: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)
    used: Amount = NOTHING
    reserved: Amount = NOTHING

    def started(self, *, now_s: float) -> Usage:
        """After one more attempt, or call, was let through."""
        return replace(self, concurrent=self.concurrent + 1, requests=self.requests.add(1, now_s=now_s))

    def returned(self, *, started_s: float) -> Usage:
        """After an attempt that was let through at ``started_s`` turned out not to start."""
        return replace(self.freed(), requests=self.requests.without(1, at_s=started_s))

    def freed(self) -> Usage:
        """After an attempt, or call, that had been let through has ended."""
        return replace(self, concurrent=max(self.concurrent - 1, 0))

    def spent(self, used: Amount, *, now_s: float) -> Usage:
        """After so much turned out to be used."""
        if used == NOTHING:
            return self
        return replace(self, tokens=self.tokens.add(used.tokens, now_s=now_s), used=self.used + used)

    def holding(self, amount: Amount) -> Usage:
        """With so much more reserved."""
        return replace(self, reserved=self.reserved + amount)

    def without(self, amount: Amount) -> Usage:
        """With so much less reserved."""
        return replace(self, reserved=self.reserved - amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not now: which limit says so (a field of ``Quota``), and in how many seconds to ask again."""

    limit: str
    ask_again_in_s: float


def is_limited(quota: Quota) -> bool:
    """Whether a quota limits anything."""
    return quota != Quota()


def spent_limit(quota: Quota, usage: Usage) -> str | None:
    """The limit on what may be used in all that is reached, if one is."""
    if quota.max_tokens is not None and usage.used.tokens >= quota.max_tokens:
        return "max_tokens"
    if quota.max_cost_usd is not None and usage.used.nano_usd >= nano(quota.max_cost_usd):
        return "max_cost_usd"
    return None


def may_start(quota: Quota, usage: Usage, *, ahead: int, now_s: float) -> Wait | None:
    """Whether one more attempt may start now; None means yes.

    ``ahead`` is how many of the same user's already wait for their turn: each is told to come back a little later
    than the one before it. A limit on tokens or money closes when it is reached; what tools of the attempts in flight
    report above it is the most that can be overspent: calls of models reserve first.
    """
    if (spent := spent_limit(quota, usage)) is not None:
        return Wait(limit=spent, ask_again_in_s=ASK_AGAIN_SPENT_S)
    if quota.max_concurrent is not None and usage.concurrent >= quota.max_concurrent:
        if quota.max_concurrent <= 0:
            return Wait(limit="max_concurrent", ask_again_in_s=ASK_AGAIN_SPENT_S)
        turns = 1 + ahead // quota.max_concurrent
        return Wait(limit="max_concurrent", ask_again_in_s=min(ASK_AGAIN_MIN_S * turns, ASK_AGAIN_BUSY_S))
    if quota.requests_per_min is not None:
        wait_s = usage.requests.room_in_s(1, quota.requests_per_min, now_s=now_s)
        if wait_s > 0:
            turn = min(1 + ahead, quota.requests_per_min)
            own_s = usage.requests.room_in_s(turn, quota.requests_per_min, now_s=now_s)
            return Wait(limit="requests_per_min", ask_again_in_s=within_reason(max(wait_s, own_s)))
    if quota.tokens_per_min is not None:
        wait_s = usage.tokens.room_in_s(1, quota.tokens_per_min, now_s=now_s)
        if wait_s > 0:
            return Wait(limit="tokens_per_min", ask_again_in_s=within_reason(wait_s))
    return None


def limited(quota: Quota, usage: Usage, *, now_s: float) -> Limited | None:
    """What lets nothing start now; None where one more attempt may."""
    if (spent := spent_limit(quota, usage)) is not None:
        return Limited(limit=spent, free_in_s=None)
    if quota.max_concurrent is not None and usage.concurrent >= quota.max_concurrent:
        return Limited(limit="max_concurrent", free_in_s=0.0 if quota.max_concurrent > 0 else None)
    for name, window, limit in (
        ("requests_per_min", usage.requests, quota.requests_per_min),
        ("tokens_per_min", usage.tokens, quota.tokens_per_min),
    ):
        wait_s = 0.0 if limit is None else window.room_in_s(1, limit, now_s=now_s)
        if wait_s > 0:
            return Limited(limit=name, free_in_s=None if math.isinf(wait_s) else wait_s)
    return None


def within_reason(wait_s: float) -> float:
    """When to ask again of who is to wait so long: neither all the time, nor so late that a raised limit is missed."""
    if math.isinf(wait_s):
        return ASK_AGAIN_SPENT_S
    return min(max(wait_s, ASK_AGAIN_MIN_S), ASK_AGAIN_MAX_S)
