"""What limits hold back: parked by user, and let out a few at a time.

What is held is the best of its queue. Let out all together it would be all that the scheduler sees, each time that
it looks: who is queued behind one limited user's many would wait for all of them.

A limit that lets nothing of its user start holds all of it. One that keeps a subtask from calling a model holds that
one alone: whatever else the user has may well start. Of those that one limit holds alone, some may need less than
others, or belong to another key: who was let out in vain goes behind those that were not.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field

from rayloom.dag.token_port import Held
from rayloom.db.queue import Queued

FEW = 16
"""So many of a user are let out at a time."""
NEXT_S = 1.0
"""Who was not among them follows after so long, unless it is found out earlier that there is room."""


@dataclass(slots=True)
class _Lot:
    """One user's, best first. ``due_at``: when to let some out. ``closed``: none may start before that.

    ``limit``: what said so last. ``free_at``: when it may have room; None: nobody knows. ``turn``: so many times some
    were let out, where that counts: who comes now goes behind those of earlier turns.
    """

    due_at: float
    limit: str
    free_at: float | None = None
    closed: bool = True
    turn: int = 0
    items: list[tuple[int, float, str, Queued]] = field(default_factory=list)


_ALL = ""
"""In place of a limit: the lot of what is held with all else of its user."""


class Parked:
    """See the module."""

    def __init__(self) -> None:
        self._lots: dict[str, dict[str, _Lot]] = {}
        """By user, and by the limit that holds them alone."""
        self._places: dict[str, str] = {}
        """By subtask: the lot of its user that it is in."""

    def add(self, item: Queued, held: Held) -> None:
        """A limit holds this one back for so long, and all of its user unless it is held ``alone``."""
        now = time.monotonic()
        due_at, place = now + held.ask_again_in_s, held.limit if held.alone else _ALL
        lot = self._lots.setdefault(item.user_id, {}).setdefault(place, _Lot(due_at, held.limit))
        lot.limit = held.limit
        lot.free_at = None if held.free_in_s is None else now + held.free_in_s
        # Of several that are told to wait the first one counts.
        lot.due_at = min(lot.due_at, due_at) if lot.closed else due_at
        lot.closed = True
        self._put(place, item)

    def joins(self, item: Queued) -> bool:
        """Whether all of its user is known to be held back: then it is parked, too, unasked."""
        lot = self._lots.get(item.user_id, {}).get(_ALL)
        if lot is None or not lot.closed:
            return False
        self._put(_ALL, item)
        return True

    def hasten(self, user_id: str) -> None:
        """This user may have room now: let some out at the next occasion."""
        for lot in self._lots.get(user_id, {}).values():
            lot.due_at = time.monotonic()

    def let_out(self) -> list[Queued]:
        """The best few of every lot whose time has come; of what is held alone, those first who waited for longest."""
        now = time.monotonic()
        out = []
        for user_id, lots in list(self._lots.items()):
            for place, lot in list(lots.items()):
                if lot.due_at > now:
                    continue
                out += [heapq.heappop(lot.items)[-1] for _ in range(min(FEW, len(lot.items)))]
                lot.due_at, lot.closed = now + NEXT_S, False
                # What holds all of a user asks of none more than of another: there the best stay first.
                lot.turn += place != _ALL
                if not lot.items:
                    del lots[place]
            if not lots:
                del self._lots[user_id]
        for item in out:
            self._places.pop(item.sub_task_id, None)
        return out

    def closed(self) -> list[str]:
        """The users of whom none may start for now."""
        return [user_id for user_id, lots in self._lots.items() if _ALL in lots and lots[_ALL].closed]

    def limit_of(self, sub_task_id: str, user_id: str) -> tuple[str, float | None] | None:
        """The limit that holds a subtask, and in how many seconds it may have room; None without one."""
        lots = self._lots.get(user_id, {})
        lot = lots.get(_ALL)
        if lot is None or not lot.closed:
            lot = lots.get(self._places.get(sub_task_id, _ALL))
        if lot is None or not lot.closed:
            return None
        return lot.limit, None if lot.free_at is None else max(lot.free_at - time.monotonic(), 0.0)

    def next_at(self) -> float | None:
        """When the next ones are to be let out (monotonic seconds)."""
        return min((lot.due_at for lots in self._lots.values() for lot in lots.values()), default=None)

    def __contains__(self, sub_task_id: str) -> bool:
        return sub_task_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def _put(self, place: str, item: Queued) -> None:
        # The sweep may have told of one again that is parked already.
        if item.sub_task_id not in self._places:
            self._places[item.sub_task_id] = place
            lot = self._lots[item.user_id][place]
            heapq.heappush(lot.items, (lot.turn, item.score, item.sub_task_id, item))
