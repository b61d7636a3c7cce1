"""The commands that decide on what waits for approval: approve, reject."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import AsJson, TaskId
from rayloom.cluster.cli.output import Output, one_line
from rayloom.dag.values import JsonObject

Subtask = Annotated[
    str | None, typer.Option(metavar="ID", help="One subtask; else the plan, or every subtask that waits now.")
]


def approve(task_id: TaskId, subtask: Subtask = None, as_json: AsJson = False) -> None:
    """Approve what waits of a task: its plan, or subtasks."""
    with connect() as client:
        answer = client.approve(task_id, subtask=subtask)
    _tell(answer, Output(as_json=as_json))


def reject(
    task_id: TaskId,
    reason: Annotated[str, typer.Option(help="Why, for whoever looks at it later.")],
    subtask: Subtask = None,
    as_json: AsJson = False,
) -> None:
    """Reject what waits of a task: its plan, which cancels the task, or subtasks."""
    with connect() as client:
        answer = client.reject(task_id, reason, subtask=subtask)
    _tell(answer, Output(as_json=as_json))


def _tell(answer: JsonObject, out: Output) -> None:
    if out.as_json:
        out.json(answer)
        return
    subtasks = answer.get("subtasks")
    named = ", ".join(one_line(name) for name in subtasks) if isinstance(subtasks, list) else ""
    what = "the plan" if answer.get("plan") else named
    out.line(f"{one_line(answer.get('decision'))}: {what} (the task is {one_line(answer.get('status'))})")
