"""What waits for a breaker: kept by breaker, and let out when it closes, or one at a time to be its probe.

They stay QUEUED in PostgreSQL, and nobody claims them: a wait costs no attempt, no write and no worker.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rayloom.dag.ports import ToolSnapshot
from rayloom.db.leases import NextCall
from rayloom.db.queue import Queued

NEXT_S = 1.0
"""Who was let out to be the probe may come to nothing (cancelled, no room): the next follow after so long."""
LOOKS = 16
"""So many are let out for one probe: it costs a look at their rows, and many may have been cancelled together."""


@dataclass(slots=True)
class _Lot:
    """Those of one breaker, best first.

    ``calls``: what they call. ``ways``: the tools by which some could have gone on, and did not. ``anew``: there may be
    another such tool now, and all are to be let out: who may not use it comes back.
    """

    calls: set[NextCall] = field(default_factory=set)
    items: list[tuple[float, str, Queued]] = field(default_factory=list)
    ways: frozenset[str] = frozenset()
    anew: bool = False


class Halted:
    """See the module."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._tools = ToolSnapshot(version=0, tools={})
        self._clock = clock
        self._lots: dict[str, _Lot] = {}
        self._no_probe_before: dict[str, float] = {}
        """By breaker; longer than its lot, which is gone while the last of it are let out."""
        self._ids: set[str] = set()

    def news(self, tools: ToolSnapshot) -> None:
        """The registry has something new. ``tools``: with the breakers that are not closed."""
        self._tools = tools
        self._no_probe_before = {key: at for key, at in self._no_probe_before.items() if key in tools.breakers}
        for lot in self._lots.values():
            ways = self._ways(lot)
            lot.anew |= not ways <= lot.ways
            lot.ways = ways

    def add(self, item: Queued, key: str, call: NextCall, *, version: int) -> None:
        """This one waits for the breaker ``key`` of the tool that it calls, as the tools of that version have it."""
        if item.sub_task_id not in self._ids:
            lot = self._lots.setdefault(key, _Lot())
            if call not in lot.calls:
                lot.calls.add(call)
                lot.ways = self._ways(lot)
            lot.anew |= version != self._tools.version
            heapq.heappush(lot.items, (item.score, item.sub_task_id, item))
            self._ids.add(item.sub_task_id)

    def let_out(self) -> list[Queued]:
        """All whose breaker is closed, or who may go on without it now; of one whose time has come, the best few.

        One of these is to be its probe. The others come back: the first ones may have been cancelled meanwhile.
        """
        out: list[Queued] = []
        for key in list(self._lots):
            lot, view, now = self._lots[key], self._tools.breakers.get(key), self._clock()
            count = len(lot.items) if view is None or lot.anew else 0
            if not count and (due := self._due(key)) is not None and due <= now:
                self._no_probe_before[key], count = now + NEXT_S, LOOKS
            lot.anew = False
            out += [heapq.heappop(lot.items)[2] for _ in range(min(count, len(lot.items)))]
            if not lot.items:
                del self._lots[key]
        self._ids.difference_update(item.sub_task_id for item in out)
        return out

    def wait_s(self) -> float | None:
        """Seconds until some are to be let out; None: not before there is news."""
        times = [at for key in self._lots if (at := self._due(key)) is not None]
        return max(min(times) - self._clock(), 0.0) if times else None

    def calls(self) -> list[NextCall]:
        """The calls of which none may start for now, not even a probe."""
        waits = {key: view.wait_s(self._clock()) for key, view in self._tools.breakers.items()}
        shut = (lot for key, lot in self._lots.items() if waits.get(key, 0) != 0)
        return [call for lot in shut for call in lot.calls if not self._ways_of(call)]

    def _ways(self, lot: _Lot) -> frozenset[str]:
        return frozenset(way for call in lot.calls for way in self._ways_of(call))

    def _ways_of(self, call: NextCall) -> list[str]:
        """What can be called now in place of a tool whose breaker is open."""
        return [*filter(self._tools.may_stand_in, (call.fallback,)), *self._tools.stand_ins(call.tool)]

    def _due(self, key: str) -> float | None:
        view = self._tools.breakers.get(key)
        if view is None or self._lots[key].anew:
            return 0.0
        return None if view.retry_at is None else max(view.retry_at, self._no_probe_before.get(key, 0.0))

    def __contains__(self, sub_task_id: str) -> bool:
        return sub_task_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)
