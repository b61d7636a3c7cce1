"""The full-chain log of a task, read: the lines that were written, and lines told by transitions and attempts.

Two sequences, each in the order of its ids, are merged by time: ``task_events``, every one of which is rendered as a
line of the stream ``system`` (and, where an attempt ends, the output that was kept with it, unless its lines were
written while it ran), and ``log_lines``. A position says how far each of them was read, so a reader that comes back
gets nothing twice and leaves nothing out, whatever was written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, and_, exists, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from rayloom.dag.planned import BEGINS, WHOLE
from rayloom.dag.states import TASK_TERMINAL
from rayloom.dag.values import JsonObject
from rayloom.db.events import TransitionRow, transition
from rayloom.db.reader import ReadSource, reading
from rayloom.db.reads import Record
from rayloom.db.schema import execution_logs, log_lines, sub_tasks, task_events, tasks

STREAMS: Final = ("system", "stdout", "stderr", "tool", "model")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_BATCH: Final = 1000
_OUTPUTS: Final = ("stdout", "stderr")
# Why a plan is to grow, as `reason_to_grow` writes it.
_TO_GROW: Final = ("BLOCKED: ", "needs more: ")
_LEVEL_OF: Final[Mapping[str | None, str]] = {"FAILED": "WARNING", "BLOCKED": "ERROR", "SKIPPED": "WARNING"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Which lines are wanted; an empty tuple means all."""

    subtask: str | None = None
    attempt: int | None = None
    streams: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()

    def takes(self, line: LogEntry) -> bool:
        """Whether a rendered line is wanted."""
        return (not self.streams or line.stream in self.streams) and (not self.levels or line.level in self.levels)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far the log was read: the last event told in full, parts told of the next one, the last written line."""

    event_id: int = 0
    part: int = 0
    line_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One line, and the position after it."""

    id: str
    at: datetime
    level: str
    stream: str
    subtask: str | None
    attempt: int | None
    message: str
    fields: JsonObject = field(default_factory=dict)
    position: Position = Position()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Lines after a position. ``end``: how far was read. ``is_last``: the task has ended and this was all of it."""

    entries: tuple[LogEntry, ...]
    end: Position
    has_more: bool
    is_last: bool


async def read_log(source: ReadSource, task_id: UUID, wanted: LogFilter, start: Position, *, limit: int) -> LogPage:
    """At most ``limit`` lines of a task after ``start``, oldest first."""
    found: list[LogEntry] = []
    position, is_drained = start, False
    async with reading(source) as connection:
        status = await connection.scalar(select(tasks.c.status).where(tasks.c.id == task_id))
        while not is_drained and len(found) <= limit:
            merge = await _batch(connection, task_id, wanted, position)
            for entry in merge:
                position = entry.position
                if wanted.takes(entry):
                    found.append(entry)
                    if len(found) > limit:
                        break
            else:
                position, is_drained = merge.position, merge.is_drained
    page = tuple(found[:limit])
    has_more = len(found) > limit
    return LogPage(
        entries=page,
        end=page[-1].position if has_more else position,
        has_more=has_more,
        is_last=not has_more and status in TASK_TERMINAL,
    )


async def _batch(connection: AsyncConnection, task_id: UUID, wanted: LogFilter, start: Position) -> _Merge:
    events, lines = task_events.c, log_lines.c
    of_events = [events.task_id == task_id, events.id > start.event_id]
    of_lines = [lines.task_id == task_id, lines.id > start.line_id]
    if wanted.subtask is not None:
        of_events.append(events.subtask == wanted.subtask)
        of_lines.append(lines.subtask == wanted.subtask)
    if wanted.attempt is not None:
        of_events.append(events.attempt == wanted.attempt)
        of_lines.append(lines.attempt == wanted.attempt)
    if wanted.streams:
        of_lines.append(lines.stream.in_(wanted.streams))
    if wanted.levels:
        of_lines.append(lines.level.in_(wanted.levels))
    told: Sequence[TransitionRow] = ()
    if not wanted.streams or {"system", *_OUTPUTS} & set(wanted.streams):
        statement = select(task_events).where(*of_events).order_by(events.id).limit(_BATCH)
        told = [transition(row) for row in await connection.execute(statement)]
    written = (await connection.execute(select(log_lines).where(*of_lines).order_by(lines.id).limit(_BATCH))).all()
    kept: Mapping[tuple[str, int], Record] = {}
    if not wanted.streams or set(_OUTPUTS) & set(wanted.streams):
        kept = await _outputs(connection, task_id, told)
    return _Merge(told, written, kept, start)


async def _outputs(
    connection: AsyncConnection, task_id: UUID, told: Sequence[TransitionRow]
) -> Mapping[tuple[str, int], Record]:
    """The output kept with the attempts that these events end, of those that wrote no lines while they ran."""
    ended = [(event.subtask, event.attempt) for event in told if _ends_attempt(event)]
    if not ended:
        return {}
    log = execution_logs.c
    had_lines = exists().where(
        log_lines.c.task_id == task_id,
        log_lines.c.subtask == sub_tasks.c.key,
        log_lines.c.attempt == log.attempt,
        log_lines.c.stream.in_(_OUTPUTS),
    )
    has_output: ColumnElement[bool] = and_(or_(log.stdout != "", log.stderr != ""), ~had_lines)
    statement = (
        select(sub_tasks.c.key, log.attempt, log.stdout, log.stderr)
        .join(sub_tasks, sub_tasks.c.id == log.sub_task_id)
        .where(sub_tasks.c.parent_id == task_id, tuple_(sub_tasks.c.key, log.attempt).in_(ended), has_output)
    )
    return {(row.key, row.attempt): row for row in await connection.execute(statement)}


def _ends_attempt(event: TransitionRow) -> bool:
    return event.source == "RUNNING" and event.target != "RUNNING" and event.attempt is not None


class _Merge:
    """Both sequences from a position on, oldest first, as far as it is sure that nothing older is still unread."""

    def __init__(
        self,
        events: Sequence[TransitionRow],
        lines: Sequence[Record],
        outputs: Mapping[tuple[str, int], Record],
        start: Position,
    ) -> None:
        self._events, self._lines, self._outputs = events, lines, outputs
        self.position = start
        self.is_drained = len(events) < _BATCH and len(lines) < _BATCH

    def __iter__(self) -> Iterator[LogEntry]:
        events, lines = list(reversed(self._events)), list(reversed(self._lines))
        while events or lines:
            # The end of a full batch is not the end of its sequence: what follows may be older than the other's head.
            if (not events and len(self._events) == _BATCH) or (not lines and len(self._lines) == _BATCH):
                return
            if not lines or (events and events[-1].at <= lines[-1].at):
                yield from self._told(events.pop())
            else:
                yield self._written(lines.pop())

    def _written(self, row: Record) -> LogEntry:
        self.position = replace(self.position, line_id=row.id)
        return LogEntry(
            id=f"l{row.id}", at=row.at, level=row.level, stream=row.stream, subtask=row.subtask, attempt=row.attempt,
            message=row.message, fields=row.fields, position=self.position,
        )  # fmt: skip

    def _told(self, event: TransitionRow) -> Iterator[LogEntry]:
        told = list(self._parts(event))
        for place, entry in enumerate(told):
            if place < self.position.part:
                continue
            is_last = place == len(told) - 1
            if is_last:
                self.position = replace(self.position, event_id=event.id, part=0)
            else:
                self.position = replace(self.position, part=place + 1)
            yield replace(entry, id=f"e{event.id}.{place}", position=self.position)
            if is_last:
                return
        # Told in full before, which only a position that was made up says.
        self.position = replace(self.position, event_id=event.id, part=0)

    def _parts(self, event: TransitionRow) -> Iterator[LogEntry]:
        kept = self._outputs.get((event.subtask or "", event.attempt or 0)) if _ends_attempt(event) else None
        if kept is not None:
            for stream in _OUTPUTS:
                for text in getattr(kept, stream).splitlines():
                    yield LogEntry(
                        id="", at=event.at, level="INFO", stream=stream, subtask=event.subtask,
                        attempt=event.attempt, message=text,
                    )  # fmt: skip
        level = "ERROR" if event.kind == "task" and event.target == "FAILED" else _LEVEL_OF.get(event.target, "INFO")
        told: JsonObject = {"from": event.source, "to": event.target}
        if event.phase is not None:
            told["phase"] = event.phase
        yield LogEntry(
            id="", at=event.at, level=level, stream="system", subtask=event.subtask, attempt=event.attempt,
            message=_sentence(event), fields={name: value for name, value in told.items() if value is not None},
        )  # fmt: skip


def _sentence(event: TransitionRow) -> str:
    if event.kind == "approval":
        return f"approval of {'the plan' if event.subtask is None else f'subtask {event.subtask}'}: {event.reason}"
    who = event.kind if event.subtask is None else f"subtask {event.subtask}"
    reason = event.reason or ""
    if event.kind == "plan" and reason.startswith((BEGINS, WHOLE)):
        return f"plan {reason}" if reason.startswith(BEGINS) else f"plan is {reason}"
    if event.target is None:
        said: str = event.kind
        if event.kind == "plan":
            said = "is to grow" if reason.startswith(_TO_GROW) else "accepted"
    elif event.source == event.target and event.phase is not None:
        said = f"is in {event.phase}"
    else:
        said = f"is {event.target}" + (f" ({event.phase})" if event.phase is not None else "")
    return f"{who} {said}" + (f": {reason}" if reason else "")
