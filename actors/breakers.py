"""Every breaker of the cluster, as the registry holds them: told of calls, asked for probes, kept in the database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from rayloom.dag.breaker import Breaker, BreakerPolicy, BreakerView, Call

_log = logging.getLogger(__name__)

_CLOSED = Breaker()


class BreakerStore(Protocol):
    """What is needed of the database; ``rayloom.db.breaker_rows.BreakerRows``."""

    async def read(self) -> Mapping[str, Breaker]:
        """Those that are open."""

    async def keep(self, key: str, breaker: Breaker) -> None:
        """Remember it, or forget one that is closed."""


class Breakers:
    """See the module. Nothing but ``load`` and ``keep`` waits for the database."""

    def __init__(self, store: BreakerStore, policy: BreakerPolicy, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._policy, self._clock = store, policy, clock
        self._all: dict[str, Breaker] = {}
        self._unkept: set[str] = set()

    async def load(self) -> None:
        """Take up what an earlier life left open."""
        for key, breaker in (await self._store.read()).items():
            self._all.setdefault(key, breaker)

    @property
    def unkept(self) -> frozenset[str]:
        """Those that have opened or closed, and that is not written down."""
        return frozenset(self._unkept)

    def views(self) -> dict[str, BreakerView]:
        """Those that are not closed, as everybody sees them."""
        seen = {key: breaker.view() for key, breaker in self._all.items()}
        return {key: view for key, view in seen.items() if view is not None}

    def report(self, calls: Iterable[Call]) -> bool:
        """How calls went. True: others must be told, as a breaker has changed."""
        now, changed = self._clock(), False
        for call in calls:
            was = self._all.get(call.key, _CLOSED)
            changed |= self._set(call.key, was, was.told(call, now=now, policy=self._policy), "calls")
        return changed

    def probe(self, key: str, by: str) -> bool:
        """Let one subtask through to see whether the callee is back. False: it must wait."""
        was = self._all.get(key, _CLOSED)
        probed = was.probed(by, now=self._clock(), policy=self._policy)
        if probed is not None:
            self._set(key, was, probed, "probe")
        return probed is not None

    def close(self, key: str) -> None:
        """By hand."""
        was = self._all.get(key, _CLOSED)
        self._set(key, was, was.closed(self._clock()), "hand")

    def open(self, key: str) -> None:
        """By hand, until it is closed by hand."""
        was = self._all.get(key, _CLOSED)
        self._set(key, was, was.opened_by_hand(), "hand")

    async def keep(self) -> None:
        """Write down what has opened and closed since. Raises Transient, with nothing lost."""
        while self._unkept:
            key = next(iter(self._unkept))
            breaker = self._all[key]
            await self._store.keep(key, breaker)
            if self._all[key] is breaker:
                self._unkept.discard(key)

    def _set(self, key: str, was: Breaker, now: Breaker, by: str) -> bool:
        """True: others see a difference."""
        self._all[key] = now
        if was.view() == now.view():
            return False
        if now.state != "half_open":
            self._unkept.add(key)
        if was.state != now.state:
            wait_s = None if now.retry_at is None else round(now.retry_at - self._clock(), 3)
            level = logging.WARNING if now.state == "open" else logging.INFO
            _log.log(level, f"breaker.{now.state}", extra={"breaker": key, "was": was.state, "by": by, "for_s": wait_s})
        return True
