"""A task as it is watched: its subtasks and their states, kept up to date by the task's events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rayloom.cluster.cli.output import one_line
from rayloom.dag.values import JsonObject

PLAN_OPEN = "the plan is not whole"
FINAL = frozenset({"COMPLETED", "CANCELLED"})
SETTLED = frozenset({"COMPLETED", "BLOCKED", "SKIPPED", "CANCELLED"})


@dataclass(slots=True, kw_only=True)
class WatchedSubtask:
    """One row of the tree. ``since`` is this machine's monotonic time at which its present attempt was seen running."""

    id: str
    name: str
    tool: str
    depends_on: tuple[str, ...]
    status: str
    phase: str | None = None
    attempts: int = 0
    duration_ms: float | None = None
    since: float | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class WatchedTask:
    """The whole task. ``plan_open``: more subtasks may come.

    ``stale`` says that its details must be read again: its plan has appeared.
    """

    task_id: str
    title: str = ""
    status: str = "PENDING"
    total: int = 0
    plan_open: bool = False
    subtasks: dict[str, WatchedSubtask] = field(default_factory=dict)
    stale: bool = False
    clock: Callable[[], float] = time.monotonic

    def load(self, details: JsonObject) -> None:
        """Take over what ``GET /tasks/{id}`` says."""
        self.title = str(details.get("title") or details.get("prompt") or "")
        self.status = str(details.get("status"))
        progress = details.get("progress")
        total = progress.get("total") if isinstance(progress, dict) else None
        rows = details.get("subtasks")
        subtasks = {}
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict):
                subtask = self._subtask(row)
                subtasks[subtask.id] = subtask
        self.plan_open = details.get("plan_open") is True
        self.total = total if isinstance(total, int) else len(subtasks)
        self.subtasks = subtasks
        self.stale = False

    def apply(self, name: str, event: JsonObject) -> None:
        """Take over one event of the stream; the stream begins with what the details know already."""
        if name == "task" and self.status not in FINAL:
            self.status = str(event.get("to") or self.status)
            self.stale = self.stale or not self.subtasks
        elif name == "plan":
            self.stale = True
        elif name == "subtask":
            self._apply_subtask(event)

    @property
    def waits_for_approval(self) -> bool:
        """Whether somebody has to allow its plan, or one of its subtasks."""
        return self.status == "READY" or self.counts()["AWAITING_APPROVAL"] > 0

    def counts(self) -> Counter[str]:
        """How many of the shown subtasks are in each status."""
        return Counter(subtask.status for subtask in list(self.subtasks.values()))

    def _apply_subtask(self, event: JsonObject) -> None:
        subtask = self.subtasks.get(str(event.get("subtask")))
        if subtask is None:
            # A plan of more than 1,000 subtasks shows its first 1,000; fewer means that the details are old.
            self.stale = self.stale or len(self.subtasks) < min(self.total, 1_000) or not self.subtasks
            return
        if subtask.status in FINAL:
            return
        status, phase = event.get("to"), event.get("phase")
        if isinstance(status, str):
            if status == "RUNNING" and subtask.status != "RUNNING":
                subtask.since, subtask.duration_ms = self.clock(), None
            elif status != "RUNNING" and subtask.since is not None:
                subtask.duration_ms, subtask.since = (self.clock() - subtask.since) * 1_000, None
            subtask.status = status
        subtask.phase = phase if isinstance(phase, str) else None
        subtask.reason = str(event.get("reason") or "")
        attempt = event.get("attempt")
        if isinstance(attempt, int):
            subtask.attempts = attempt

    def _subtask(self, row: JsonObject) -> WatchedSubtask:
        key = str(row.get("id"))
        depends_on, duration, attempts = row.get("depends_on"), row.get("duration_ms"), row.get("attempts")
        status = str(row.get("status"))
        known = self.subtasks.get(key)
        running_since = known.since if known is not None and known.since is not None else self.clock()
        error, phase = row.get("error"), row.get("phase")
        return WatchedSubtask(
            id=key,
            name=str(row.get("name") or key),
            tool=one_line(row.get("tool") or row.get("type")),
            depends_on=tuple(str(d) for d in depends_on) if isinstance(depends_on, list) else (),
            status=status,
            phase=phase if isinstance(phase, str) else None,
            attempts=attempts if isinstance(attempts, int) else 0,
            duration_ms=float(duration) if isinstance(duration, int | float) else None,
            since=running_since if status == "RUNNING" else None,
            reason=str(error.get("message") or "") if isinstance(error, dict) else "",
        )
