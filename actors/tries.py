"""What is tried for the plan of one task: told in its log once, and kept in its record, so that it is paid for once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import RayloomError, Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.tried import Kept, PlanCall, Tried
from rayloom.dag.values import JsonObject
from rayloom.db.log_lines import append_if_taken
from rayloom.db.task_moves import keep_tried

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Tries:
    """The tries of one incarnation. ``kept``: what was tried before; ``tried``: what the next one goes on from."""

    def __init__(self, engine: AsyncEngine, task_id: UUID, incarnation: UUID, kept: Kept) -> None:
        self._engine, self._task_id, self._incarnation = engine, task_id, incarnation
        self.tried, self._told, self._written = kept.tried, kept.told, kept

    async def heard(self, error: RayloomError) -> None:
        """A try has ended so. One that says nothing of what it did leaves what there is.

        While the database is away it is kept here alone, until the next try has ended.
        """
        try:
            await self.keep(error.tried or self.tried)
        except Transient as failure:
            _log.warning("tries.not_kept", extra={"task_id": str(self._task_id), "error": failure.message})

    async def keep(self, tried: Tried) -> None:
        """Go on from this, and have it in the record for whoever plans next. Raises Transient."""
        self.tried, kept = tried, Kept(tried=tried, told=self._told)
        if tried.text and kept != self._written:
            await keep_tried(self._engine, self._task_id, self._incarnation, kept)
            self._written = kept

    async def tell(self, notes: Sequence[str], calls: Sequence[PlanCall], source: str = "model") -> None:
        """Have the log tell what it does not tell yet; where it can't now, it is left out."""
        await append_if_taken(self._engine, self.lines(notes, calls, source))
        self._told = Tried(notes=tuple(notes), calls=tuple(calls))

    def lines(self, notes: Sequence[str], calls: Sequence[PlanCall], source: str = "model") -> list[LogLine]:
        """What the log does not tell of these yet."""
        told = self._told
        return planning_lines(self._task_id, _after(notes, told.notes), _after(calls, told.calls), source)


def _after(all_: Sequence[T], told: Sequence[T]) -> Sequence[T]:
    """``all_`` without ``told``, if it begins with that."""
    return all_[len(told) :] if list(all_[: len(told)]) == list(told) else all_


def planning_lines(
    task_id: UUID, notes: Sequence[str], calls: Sequence[PlanCall], source: str = "model", *, level: str = "INFO"
) -> list[LogLine]:
    """What the log of a task says of its planning: each call of a model, and each note."""
    at, id_, fields = datetime.now(UTC), str(task_id), JsonObject(source=source)
    told = [LogLine(at=at, task_id=id_, message=call.line, stream="model", fields=call.as_json()) for call in calls]
    return told + [LogLine(at=at, task_id=id_, message=note, level=level, fields=fields) for note in notes]
