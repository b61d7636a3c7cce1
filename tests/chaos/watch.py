"""Looks on: how often breakers open, and how long the API is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import httpx2

from tests.chaos.faults import ServerFaults

LOOK_S: Final = 0.25
ANSWER_S: Final = 5.0
TOLD_S: Final = 10.0
"""It is told when the API was away for longer."""


class Watched(Protocol):
    """What it needs of an instance."""

    @property
    def url(self) -> str:
        """Where its API is."""

    def sql(self, statement: str, *values: object) -> Sequence[Mapping[str, Any]]:
        """The rows of a statement."""


class Watch:
    """See the module. ``away``: what the database raises while it is down; ``faults`` hears what the API answers."""

    def __init__(
        self,
        instance: Watched,
        *,
        tell: Callable[[str], None],
        away: tuple[type[BaseException], ...],
        faults: ServerFaults,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._instance, self._tell, self._away = instance, tell, away
        self._transport = faults.transport(transport)
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="watch")
        self._watching: list[Future[None]] = []
        self.openings = 0
        """How often a breaker was seen to open."""
        self.opened: set[str] = set()
        """The breakers that were."""
        self.away_s = 0.0
        """The longest time that it was away: from its last answer to the next one, or to the end."""
        self.away_in_all_s = 0.0
        """All such times together."""

    def start(self) -> None:
        """Begin."""
        self._watching = [self._pool.submit(self._watch_breakers), self._pool.submit(self._watch_api)]

    def stop(self) -> None:
        """Look on no longer. Raises what has ended a watch before its time: what it told is not all that there was."""
        self._over.set()
        self._pool.shutdown()
        for watching in self._watching:
            watching.result()

    def _watch_breakers(self) -> None:
        seen: set[str] = set()
        while not self._over.wait(LOOK_S):
            try:
                # While one is open, and no longer, it has a row.
                now = {row["key"] for row in self._instance.sql("SELECT key FROM breakers")}
            except self._away:
                continue
            for what, keys in (("open", now - seen), ("closed", seen - now)):
                if keys:
                    self._tell(f"the breaker of {', '.join(sorted(keys))} is {what}")
            self.openings += len(now - seen)
            self.opened |= now
            seen = now

    def _watch_api(self) -> None:
        answered_at, is_away = time.monotonic(), False
        with httpx2.Client(timeout=ANSWER_S, trust_env=False, transport=self._transport) as http:
            while not self._over.wait(LOOK_S):
                try:
                    http.get(f"{self._instance.url}/healthz").raise_for_status()
                except httpx2.HTTPError:
                    is_away = True
                    continue
                now = time.monotonic()
                if is_away:
                    self._note_away(now - answered_at)
                answered_at, is_away = now, False
        if is_away:
            self._note_away(time.monotonic() - answered_at)

    def _note_away(self, away_s: float) -> None:
        self.away_s = max(self.away_s, away_s)
        self.away_in_all_s += away_s
        if away_s > TOLD_S:
            self._tell(f"the API was away for {away_s:.1f} s")
