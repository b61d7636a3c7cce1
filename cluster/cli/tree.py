"""The live picture of a task: a progress bar, and its DAG as a tree that fits the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayloom.cluster.cli.output import STATUS_STYLES, one_line, seconds
from rayloom.cluster.cli.progress import PLAN_OPEN, SETTLED, WatchedSubtask, WatchedTask

MARKS = {
    "COMPLETED": "✔",
    "RUNNING": "▶",
    "QUEUED": "…",
    "READY": "·",
    "PENDING": "·",
    "AWAITING_APPROVAL": "?",
    "FAILED": "↻",
    "BLOCKED": "✘",
    "SKIPPED": "–",
    "CANCELLED": "–",
}
FRAME_LINES = 5
_INTEREST = ("RUNNING", "FAILED", "BLOCKED", "AWAITING_APPROVAL", "QUEUED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One subtask in the tree: under which depth, and which dependencies the tree can't draw."""

    subtask: WatchedSubtask
    depth: int
    also: tuple[str, ...]


def rows(subtasks: Mapping[str, WatchedSubtask]) -> list[Row]:
    """The DAG as a tree: every subtask once, under the dependency of it that comes last; the others are named."""
    shown = dict(subtasks)
    children: dict[str | None, list[str]] = {}
    for key, subtask in shown.items():
        inside = [d for d in subtask.depends_on if d in shown]
        children.setdefault(inside[-1] if inside else None, []).append(key)
    ordered: list[Row] = []
    pending = [(key, 0) for key in reversed(children.get(None, []))]
    while pending:
        key, depth = pending.pop()
        subtask = shown[key]
        inside = [d for d in subtask.depends_on if d in shown]
        ordered.append(Row(subtask=subtask, depth=depth, also=tuple(inside[:-1])))
        pending.extend((child, depth + 1) for child in reversed(children.get(key, [])))
    return ordered


def window(tree: list[Row], height: int) -> list[Row]:
    """The rows that fit, the interesting ones first, in the order of the tree."""
    if len(tree) <= height:
        return tree
    rank = {status: position for position, status in enumerate(_INTEREST)}
    by_interest = sorted(range(len(tree)), key=lambda i: (rank.get(tree[i].subtask.status, len(rank)), i))
    return [tree[i] for i in sorted(by_interest[: max(1, height - 1)])]


class TaskPicture:
    """What Rich draws, again and again, from the task's present state."""

    def __init__(self, task: WatchedTask) -> None:
        self._task = task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One frame."""
        yield self._heading()
        yield self._bar(options.max_width)
        if self._task.waits_for_approval:
            hint = f"waits for approval: rayloom approve {self._task.task_id}, or reject"
            yield Text(hint, style=STATUS_STYLES["AWAITING_APPROVAL"], no_wrap=True, overflow="ellipsis")
        height = max(3, (options.height or console.size.height) - FRAME_LINES)
        tree = rows(self._task.subtasks)
        visible = window(tree, height)
        yield from self._tree(visible, options.max_width)
        if len(visible) < len(tree) or self._task.total > len(tree):
            yield Text(f"… {self._task.total - len(visible)} more", style="dim")

    def _heading(self) -> Text:
        task = self._task
        heading = Text(no_wrap=True, overflow="ellipsis")
        heading.append(task.status.ljust(11), style=f"bold {STATUS_STYLES.get(task.status, '')}".strip())
        heading.append(f"{one_line(task.title)}  ")
        heading.append(task.task_id, style="dim")
        return heading

    def _bar(self, width: int) -> Table:
        counts = self._task.counts()
        settled = sum(counts[status] for status in SETTLED)
        total = max(self._task.total, len(self._task.subtasks))
        grid = Table.grid(padding=(0, 1))
        said = f"{settled}/{total}" + "".join(
            f"  {counts[status]} {status.lower().replace('_', ' ')}" for status in _INTEREST if counts[status]
        )
        if self._task.plan_open:
            said, total = f"{said}  {PLAN_OPEN}", total + 1
        grid.add_row(ProgressBar(total=max(total, 1), completed=settled, width=max(10, min(40, width // 3))), said)
        return grid

    def _tree(self, visible: list[Row], width: int) -> Iterator[Text]:
        for row in visible:
            subtask = row.subtask
            style = STATUS_STYLES.get(subtask.status, "")
            line = Text(no_wrap=True, overflow="ellipsis", end="\n")
            line.append("  " * min(row.depth, max(1, width // 8)))
            line.append(f"{MARKS.get(subtask.status, '?')} ", style=style)
            line.append(one_line(subtask.name) or subtask.id, style="bold" if subtask.status == "RUNNING" else "")
            line.append(f"  {subtask.tool}", style="dim")
            line.append(f"  {self._state(subtask)}", style=style)
            if row.also:
                line.append(f"  + {', '.join(row.also)}", style="dim")
            yield line

    def _state(self, subtask: WatchedSubtask) -> str:
        parts = [subtask.status if subtask.phase is None else f"{subtask.status} {subtask.phase}"]
        if subtask.since is not None:
            parts.append(seconds((self._task.clock() - subtask.since) * 1_000))
        elif subtask.duration_ms is not None and subtask.status in SETTLED:
            parts.append(seconds(subtask.duration_ms))
        if subtask.attempts > 1:
            parts.append(f"attempt {subtask.attempts}")
        if subtask.reason and subtask.status in ("FAILED", "BLOCKED"):
            parts.append(one_line(subtask.reason))
        return " · ".join(parts)
