"""What the limits of its user hold back: parked by user, and let out a few at a time.

What is held is the best of its queue. Let out all together it would be all that the scheduler sees, each time that
it looks: who is queued behind one limited user's many would wait for all of them.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

from rayloom.db.queue import Queued

FEW = 16
"""So many of a user are let out at a time."""
NEXT_S = 1.0
"""Who was not among them follows after so long, unless it is found out earlier that there is room."""


@dataclass(slots=True)
class _Lot:
    """One user's, best first. ``due_at``: when to let some out. ``closed``: none may start before that.

    ``limit``: what said so last.
    """

    due_at: float
    limit: str
    closed: bool = True
    items: list[tuple[float, str, Queued]] = field(default_factory=list)


class Parked:
    """See the module."""

    def __init__(self) -> None:
        self._lots: dict[str, _Lot] = {}
        self._ids: set[str] = set()

    def add(self, item: Queued, seconds: float, *, limit: str) -> None:
        """A limit of its user holds this one back for so long."""
        due_at = time.monotonic() + seconds
        lot = self._lots.setdefault(item.user_id, _Lot(due_at, limit))
        lot.limit = limit
        # Of several that are told to wait the first one counts.
        lot.due_at = min(lot.due_at, due_at) if lot.closed else due_at
        lot.closed = True
        self._put(lot, item)

    def joins(self, item: Queued) -> bool:
        """Whether its user is known to be held back: then it is parked, too, unasked."""
        lot = self._lots.get(item.user_id)
        if lot is None or not lot.closed:
            return False
        self._put(lot, item)
        return True

    def hasten(self, user_id: str) -> None:
        """This user may have room now: let some out at the next occasion."""
        lot = self._lots.get(user_id)
        if lot is not None:
            lot.due_at = time.monotonic()

    def let_out(self) -> list[Queued]:
        """The best few of every user whose time has come."""
        now = time.monotonic()
        out = []
        for user_id, lot in list(self._lots.items()):
            if lot.due_at > now:
                continue
            out += [heapq.heappop(lot.items)[2] for _ in range(min(FEW, len(lot.items)))]
            lot.due_at, lot.closed = now + NEXT_S, False
            if not lot.items:
                del self._lots[user_id]
        self._ids.difference_update(item.sub_task_id for item in out)
        return out

    def closed(self) -> list[str]:
        """The users of whom none may start for now."""
        return [user_id for user_id, lot in self._lots.items() if lot.closed]

    def limit_of(self, user_id: str) -> tuple[str, float] | None:
        """The limit that lets nothing of a user start, and in how many seconds it is asked again; None without one."""
        lot = self._lots.get(user_id)
        if lot is None or not lot.closed:
            return None
        return lot.limit, max(lot.due_at - time.monotonic(), 0.0)

    def next_at(self) -> float | None:
        """When the next ones are to be let out (monotonic seconds)."""
        return min((lot.due_at for lot in self._lots.values()), default=None)

    def __contains__(self, sub_task_id: str) -> bool:
        return sub_task_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def _put(self, lot: _Lot, item: Queued) -> None:
        # The sweep may have told of one again that is parked already.
        if item.sub_task_id not in self._ids:
            self._ids.add(item.sub_task_id)
            heapq.heappush(lot.items, (item.score, item.sub_task_id, item))
