"""The commands that run some of a task again: retry what is BLOCKED, or fork it."""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from rayloom.cluster.cli.connection import BULK_TIMEOUT_S, connect
from rayloom.cluster.cli.options import AsJson, BudgetCost, BudgetTokens, TaskId, budget_of, parse_object, parse_pairs
from rayloom.cluster.cli.output import Output
from rayloom.cluster.cli.tasks import WATCH_PATIENCE_S
from rayloom.cluster.cli.watching import watch_task
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.parameters import segment


def retry(
    task_id: TaskId,
    subtask: Annotated[list[str] | None, typer.Option(help="Only this BLOCKED subtask; may be repeated.")] = None,
    budget_deadline_s: Annotated[float | None, typer.Option(min=0, help="Stop in so many seconds from now.")] = None,
    budget_max_tokens: BudgetTokens = None,
    budget_max_cost_usd: BudgetCost = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it running, then its result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run again what is BLOCKED of a task, and what was SKIPPED for it; what has completed is kept.

    A task that failed before it had a whole plan is planned again.
    """
    body: JsonObject = {}
    if subtask:
        body["subtasks"] = list[Json](subtask)
    budget = budget_of(deadline_s=budget_deadline_s, max_tokens=budget_max_tokens, max_cost_usd=budget_max_cost_usd)
    if budget:
        body["budget"] = budget
    out = Output(as_json=as_json)
    with connect(timeout_s=BULK_TIMEOUT_S) as client:
        answer = client.post(f"/api/v1/tasks/{segment(task_id)}/retry", body)
    if watch:
        _watch(task_id, out)
    if as_json:
        out.json(answer)
        return
    retried = answer.get("retried")
    for id_ in retried if isinstance(retried, list) else []:
        out.line(str(id_))


def fork(
    task_id: TaskId,
    from_: Annotated[
        list[str], typer.Option("--from", metavar="SUBTASK", help="Run this and all below it anew; may be repeated.")
    ],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="SUBTASK=JSON", help="Another input: a JSON object, or @file; may be repeated."
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it running, then its result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a new task that takes over what this one has completed, and runs the rest anew."""
    inputs = {id_: parse_object(text, name="--input") for id_, text in parse_pairs(given or [], name="--input").items()}
    body: JsonObject = {"from": list[Json](from_)}
    if inputs:
        body["inputs"] = dict[str, Json](inputs)
    out = Output(as_json=as_json)
    with connect(timeout_s=BULK_TIMEOUT_S, patience_s=WATCH_PATIENCE_S if watch else 0.0) as client:
        made = client.fork(task_id, body)
    if watch:
        _watch(made.task_id, out)
    if as_json:
        out.json(made.body)
    else:
        out.line(made.task_id)


def _watch(task_id: str, out: Output) -> NoReturn:
    with connect(patience_s=WATCH_PATIENCE_S) as client:
        raise typer.Exit(watch_task(client, task_id, out))
