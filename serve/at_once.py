"""How much each user does at once in this replica."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from rayloom.serve.problems import Problem


class AtOnce:
    """Counts what is under way for each user; ``most`` of it may be."""

    def __init__(self, most: int, *, retry_after_s: float) -> None:
        self._most, self._retry_after_s = most, retry_after_s
        self._counts: Counter[UUID] = Counter()

    @contextmanager
    def one(self, user_id: UUID, what: str) -> Iterator[None]:
        """One more, as long as the block lasts. Raises Problem (429) where there are as many as may be."""
        if self._counts[user_id] >= self._most:
            raise Problem(
                429, f"you have {self._most} {what} under way already; wait for one of them",
                code="TOO_MANY_AT_ONCE", retry_after_s=self._retry_after_s,
            )  # fmt: skip
        self._counts[user_id] += 1
        try:
            yield
        finally:
            self._counts[user_id] -= 1
            if not self._counts[user_id]:
                del self._counts[user_id]
