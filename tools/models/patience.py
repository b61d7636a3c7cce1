"""How long a call of a model waits for room in its place, before whoever wants it is told to come again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

AGAIN_MAX_S: Final = 5.0
"""Room is asked for as often at least."""
AGAIN_MIN_S: Final = 0.05
"""An account that says "now", and again no, is not to be asked without a pause."""


def _endless() -> float:
    return math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long somebody waits, in seconds. Who has to wait longer is told so, and does not hold a worker meanwhile.

    ``once_s``, ``total_s``: for one denial, and for all that a call hears. ``paid_s``: for either where calls are paid
    for that would have to be made again: until a window has gone by. ``left_s``: how much time is left for all that is
    to be done. Of that no call waits for more than half: the rest is for its answer, and waiting shall not be what the
    time runs out for. But for a call of its own it waits as long as there is time: to give up would throw that away.
    """

    once_s: float = 5.0
    total_s: float = 15.0
    paid_s: float = 75.0
    left_s: Callable[[], float] = _endless


class Waiting:
    """A call that waits for room, from now on."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._waited_s = 0.0
        self._kept_s = patience.left_s() / 2

    @property
    def asking_s(self) -> float | None:
        """How long it may take to hear whether there is room; None: as long as it takes."""
        # Also where it has just waited for all that it may: that shall not have been in vain.
        return None if math.isinf(self._kept_s) else max(self._left_s, self._kept_s / 2)

    def pause_s(self, wait_s: float, *, has_paid: bool, may_end_it: bool = False) -> float | None:
        """How long to pause where there may be room in ``wait_s``; None: it is no use to wait here.

        ``may_end_it``: what takes the room may be given back at any moment by who waits itself.
        """
        patience = self._patience
        once_s, total_s = (patience.paid_s,) * 2 if has_paid else (patience.once_s, patience.total_s)
        pause_s = min(max(wait_s, AGAIN_MIN_S), AGAIN_MAX_S)
        if may_end_it:
            return pause_s if pause_s <= patience.left_s() else None
        if wait_s > once_s or self._waited_s + wait_s > total_s or wait_s > self._left_s:
            return None
        self._waited_s += pause_s
        return pause_s

    @property
    def _left_s(self) -> float:
        """How long it may wait yet for others, for want of time."""
        # Of endless time half is endless, too.
        return math.inf if math.isinf(self._kept_s) else self._patience.left_s() - self._kept_s
