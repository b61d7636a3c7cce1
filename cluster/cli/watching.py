"""Watching a task until it ends: a live picture on a terminal, one line an event elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from rayloom.cluster.cli.exits import ExitCode, exit_of
from rayloom.cluster.cli.output import Output, one_line
from rayloom.cluster.cli.progress import WatchedTask
from rayloom.dag.values import JsonObject

if TYPE_CHECKING:
    from rayloom.serve.client import Client, StreamEvent


def watch_task(client: Client, task_id: str, out: Output) -> ExitCode:
    """Show a task until it has ended, then its result (with JSON: only the final details). Gives the exit code.

    Ctrl-C stops the watching and leaves the task running. Raises Rejected for an unknown task.
    """
    try:
        details = follow(client, task_id, out)
    except KeyboardInterrupt:
        typer.echo(f"rayloom: task {task_id} goes on; `rayloom watch {task_id}` shows it again", err=True)
        return ExitCode.INTERRUPTED
    if out.as_json:
        out.json(details)
    else:
        show_end(out, details)
    return exit_of(details.get("status"))


def follow(client: Client, task_id: str, out: Output) -> JsonObject:
    """Show a task until it has ended; gives its final details."""
    details = client.task(task_id)
    task = WatchedTask(task_id=task_id)
    task.load(details)
    with _picture(task, out):
        for event in client.events(task_id):
            task.apply(event.name, event.data)
            if task.stale:
                task.load(client.task(task_id))
            if not out.as_json and not out.rich:
                out.line(event_line(event))
        details = client.task(task_id)
        task.load(details)
    return details


def event_line(event: StreamEvent) -> str:
    """One event as a plain line: when, what, who, from and to which state, and why."""
    data = event.data
    who = one_line(data.get("subtask")) or "-"
    move = f"{one_line(data.get('from')) or '-'} -> {one_line(data.get('to'))}" if data.get("to") else "-"
    extra = [one_line(data.get("phase"))]
    attempt = data.get("attempt")
    if isinstance(attempt, int) and attempt > 1:
        extra.append(f"attempt {attempt}")
    extra.append(one_line(data.get("reason")))
    return "\t".join(
        [one_line(data.get("at")), event.name, who, move, " ".join(part for part in extra if part)]
    ).rstrip()


def show_end(out: Output, task: JsonObject) -> None:
    """The result or the error of a task that has ended, for reading."""
    error = task.get("error")
    if isinstance(error, dict):
        out.line(f"error: {one_line(error.get('code'))}: {one_line(error.get('message'))}")
    missing = task.get("missing")
    if isinstance(missing, list) and missing and task.get("status") == "COMPLETED":
        out.line(f"missing: {', '.join(one_line(name) for name in missing)}")
    if task.get("result") is not None:
        out.line("result:")
        out.value(task["result"])


@contextmanager
def _picture(task: WatchedTask, out: Output) -> Iterator[None]:
    if not out.rich:
        yield
        return
    from rich.live import Live

    from rayloom.cluster.cli.tree import TaskPicture

    with Live(TaskPicture(task), console=out.console, refresh_per_second=8, vertical_overflow="crop"):
        yield
