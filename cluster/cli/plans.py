"""The command that plans a prompt without running it."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import AsJson, budget_of, parse_object, read_json, read_object
from rayloom.cluster.cli.output import Output, items_of, one_line, seconds
from rayloom.cluster.cli.progress import WatchedSubtask
from rayloom.cluster.cli.tree import rows
from rayloom.dag.values import Json, JsonObject

PLAN_TIMEOUT_S: Final = 960.0
"""The API gives a model 900 s for a plan."""


def plan(
    prompt: Annotated[str | None, typer.Argument(help="What would have to be done.")] = None,
    file: Annotated[str | None, typer.Option(help="A JSON file with the whole request; options go over it.")] = None,
    context: Annotated[str | None, typer.Option(help="A JSON object, or @file.")] = None,
    tools: Annotated[str | None, typer.Option(help="A JSON file with tools to plan with, in place of ours.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Say where it would take more tokens.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(min=0, help="Say where it would cost more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan that a prompt would get: nothing is stored, nothing runs. What a model is asked is paid for."""
    body: JsonObject = read_object(file, name="--file") if file is not None else {}
    if prompt is not None:
        body["prompt"] = prompt
    if context is not None:
        body["context"] = parse_object(context, name="--context")
    if tools is not None:
        body["tools"] = read_json(tools, name="--tools")
    given = budget_of(deadline_s=None, max_tokens=max_tokens, max_cost_usd=max_cost_usd)
    known = body.get("budget")
    if given:
        body["budget"] = {**(known if isinstance(known, dict) else {}), **given}
    if "prompt" not in body:
        raise typer.BadParameter("a prompt or --file is wanted")
    with connect(timeout_s=PLAN_TIMEOUT_S) as client:
        answer = client.post("/api/v1/plans", body)
    out = Output(as_json=as_json)
    if as_json:
        out.json(answer)
    else:
        _show(out, answer)


def _show(out: Output, answer: JsonObject) -> None:
    planned = answer.get("plan")
    subtasks = items_of(planned, "subtasks") if isinstance(planned, dict) else []
    for line in _tree(subtasks):
        out.line(line)
    out.line()
    path = answer.get("critical_path")
    chain = " -> ".join(map(str, path)) if isinstance(path, list) else ""
    pairs: list[tuple[str, object]] = [
        ("source", answer.get("source")),
        ("repairs", answer.get("repairs")),
        ("width", answer.get("width")),
        ("critical path", chain),
        ("estimate", _figures(answer.get("estimate"))),
        ("planning used", _figures(answer.get("usage"))),
    ]
    brief = answer.get("brief")
    pairs += [(name, _said(value)) for name, value in (brief if isinstance(brief, dict) else {}).items()]
    out.fields([(name, value) for name, value in pairs if value not in (None, "")])
    warnings = answer.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        out.line(f"! {one_line(warning)}")


def _tree(subtasks: list[JsonObject]) -> list[str]:
    known = {
        str(each.get("id")): WatchedSubtask(
            id=str(each.get("id")),
            name=one_line(each.get("name")) or str(each.get("id")),
            tool=str(each.get("tool") or each.get("type")),
            depends_on=_needed(each, subtasks),
            status="PENDING",
            reason=one_line(each.get("instruction")),
        )
        for each in subtasks
    }
    return [
        "  " * row.depth
        + f"{row.subtask.id}  {row.subtask.tool}"
        + (f"  + {', '.join(row.also)}" if row.also else "")
        + (f"  {row.subtask.reason}" if row.subtask.reason else "")
        for row in rows(known)
    ]


def _needed(subtask: JsonObject, subtasks: list[JsonObject]) -> tuple[str, ...]:
    """What a subtask waits for: those that it names, and those whose outputs it uses."""
    # It costs time that `rayloom --help` must not pay.
    from rayloom.dag.planning.written import needed

    ids = [str(each.get("id")) for each in subtasks]
    return tuple(name for name in needed(subtask, ids) if name != subtask.get("id"))


def _figures(figures: Json) -> str:
    """Tokens, money and time, as far as they are said."""
    told = figures if isinstance(figures, dict) else {}
    tokens, cost_usd, took_s = told.get("tokens"), told.get("cost_usd"), told.get("seconds")
    parts = [f"{tokens:,} tokens"] if isinstance(tokens, int) else []
    parts += [f"{cost_usd:.4f} USD"] if isinstance(cost_usd, int | float) and cost_usd else []
    parts += [seconds(took_s * 1_000)] if isinstance(took_s, int | float) else []
    return ", ".join(parts)


def _said(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(one_line, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {one_line(each)}" for name, each in value.items())
    return one_line(value)
