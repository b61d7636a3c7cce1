"""Which of the outcomes that wait may be one on which the database fails each time."""

from __future__ import annotations

PATIENCE = 3
"""So often in a row a batch, and then an outcome alone, may fail for reasons that are not its own."""


class Suspects:
    """A batch that fails again and again, though the database took writes just before, is halved down to one.

    Batches are taken from the front of what waits, so those that failed together come again together.
    """

    def __init__(self) -> None:
        self._failures = self._left = self._size = 0
        self.alert = False
        """Whether the database takes writes at all is to be asked before the next batch."""

    def limit(self, batch_max: int) -> int:
        """How many may go into the next batch."""
        return min(self._size, batch_max) if self._left else batch_max

    def written(self, count: int) -> None:
        """So many went through."""
        self._failures = 0
        self._left = max(self._left - count, 0)
        self.alert = self._left > 0

    def failed(self, count: int) -> bool:
        """A batch of so many failed. True: it is one alone, and to be given up; whom to suspect next is open."""
        if not self.alert:
            # Nobody had asked: the database may simply have been away.
            self.alert = True
            return False
        self._failures += 1
        if self._failures < PATIENCE and (count == 1 or not self._left):
            return False
        self._failures = 0
        if count == 1:
            self._left = 0
            return True
        self._left = self._left or count
        self._size = count // 2
        return False
