"""The commands on tasks: submit, watch, list, show, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import (
    LIMIT,
    AsJson,
    BudgetCost,
    BudgetTokens,
    Cursor,
    Limit,
    TaskId,
    budget_of,
    parse_object,
    parse_pairs,
    read_object,
    tell_more,
)
from rayloom.cluster.cli.output import Output, items_of, one_line, seconds
from rayloom.cluster.cli.progress import PLAN_OPEN
from rayloom.cluster.cli.subtasks import show_subtask
from rayloom.cluster.cli.watching import show_end, watch_task
from rayloom.dag.values import Json, JsonObject

WATCH_PATIENCE_S = 30.0


def submit(
    prompt: Annotated[str | None, typer.Argument(help="What is to be done.")] = None,
    plan: Annotated[str | None, typer.Option(help="A JSON file with the plan, or - for standard input.")] = None,
    file: Annotated[str | None, typer.Option(help="A JSON file with the whole request; options go over it.")] = None,
    title: Annotated[str | None, typer.Option(help="A short name.")] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=10, help="1 (lowest) to 10 (highest).")] = None,
    context: Annotated[str | None, typer.Option(help="A JSON object, or @file.")] = None,
    budget_deadline_s: Annotated[float | None, typer.Option(min=0, help="Stop after so many seconds.")] = None,
    budget_max_tokens: BudgetTokens = None,
    budget_max_cost_usd: BudgetCost = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; may be repeated.")] = None,
    allow_tool: Annotated[list[str] | None, typer.Option(help="A tool, or pattern, that may be used.")] = None,
    deny_tool: Annotated[list[str] | None, typer.Option(help="A tool, or pattern, that may not.")] = None,
    callback_url: Annotated[str | None, typer.Option(help="A signed webhook goes there when the task ends.")] = None,
    require_approval: Annotated[bool, typer.Option("--require-approval", help="Stop at READY until approved.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key never makes a second task.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it running, then its result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a task: a prompt, a plan, or a whole request."""
    body: JsonObject = read_object(file, name="--file") if file is not None else {}
    if plan is not None:
        body["plan"] = read_object(plan, name="--plan")
    options: dict[str, Json] = {"prompt": prompt, "title": title, "priority": priority, "callback_url": callback_url}
    body.update({name: value for name, value in options.items() if value is not None})
    if context is not None:
        body["context"] = parse_object(context, name="--context")
    if require_approval:
        body["require_approval"] = True
    budget = budget_of(deadline_s=budget_deadline_s, max_tokens=budget_max_tokens, max_cost_usd=budget_max_cost_usd)
    if budget:
        _merge(body, "budget", budget)
    _merge(body, "labels", dict(parse_pairs(label or [], name="--label")))
    _merge(body, "tools", _tools(allow_tool, deny_tool))
    if "prompt" not in body and "plan" not in body:
        raise typer.BadParameter("a prompt, --plan or --file is wanted")

    out = Output(as_json=as_json)
    with connect(patience_s=WATCH_PATIENCE_S if watch else 0.0) as client:
        submitted = client.submit(body, idempotency_key=idempotency_key)
        if watch:
            raise typer.Exit(watch_task(client, submitted.task_id, out))
    if as_json:
        out.json(submitted.body)
    else:
        out.line(submitted.task_id)
        if (secret := submitted.body.get("callback_secret")) is not None:
            typer.echo(f"the webhook is signed with {one_line(secret)}", err=True)


def watch(task_id: TaskId, as_json: AsJson = False) -> None:
    """Show a task running until it ends, then its result. Ctrl-C stops the watching only."""
    with connect(patience_s=WATCH_PATIENCE_S) as client:
        raise typer.Exit(watch_task(client, task_id, Output(as_json=as_json)))


def list_tasks(
    status: Annotated[str | None, typer.Option(help="Only tasks of this status.")] = None,
    priority: Annotated[int | None, typer.Option(min=1, max=10, help="Only tasks of this priority.")] = None,
    created_after: Annotated[str | None, typer.Option(help="RFC 3339 time.")] = None,
    created_before: Annotated[str | None, typer.Option(help="RFC 3339 time.")] = None,
    q: Annotated[str | None, typer.Option("--query", "-q", help="Words of the title or prompt.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Somebody else's tasks (admin).")] = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
    every: Annotated[bool, typer.Option("--all", help="Every page, not only the first.")] = False,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    out = Output(as_json=as_json)
    params = {
        "status": status.upper() if status else None,
        "priority": priority,
        "created_after": created_after,
        "created_before": created_before,
        "q": q,
        "user_id": user_id,
        "limit": limit,
        "cursor": cursor,
    }
    with connect() as client:
        if every:
            items = [item for page in client.pages("/api/v1/tasks", params) for item in items_of(page, "items")]
            page: JsonObject = {"items": list[Json](items), "next_cursor": None}
        else:
            page = client.tasks(params)
    if as_json:
        out.json(page)
        return
    out.table(
        ("TASK", "STATUS", "PRIORITY", "CREATED", "DONE", "TITLE"), [_row(item) for item in items_of(page, "items")]
    )
    options = {
        "--status": status,
        "--priority": priority,
        "--created-after": created_after,
        "--created-before": created_before,
        "--query": q,
        "--user-id": user_id,
    }
    tell_more(out, page, "rayloom list", options, limit=limit)


def show(
    task_id: TaskId,
    subtask: Annotated[str | None, typer.Argument(metavar="SUBTASK", help="Only this subtask, in full.")] = None,
    why: Annotated[bool, typer.Option("--why", help="With SUBTASK: why it is not running yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a task: its state, its subtasks, its result; or one subtask of it."""
    out = Output(as_json=as_json)
    if subtask is not None:
        show_subtask(out, task_id, subtask, why=why)
        return
    if why:
        raise typer.BadParameter("name a subtask, too", param_hint="--why")
    with connect() as client:
        task = client.task(task_id)
    if as_json:
        out.json(task)
        return
    out.fields([(name, task.get(name)) for name in ("task_id", "title", "status", "priority", "created_at")])
    out.fields([(name, task.get(name)) for name in ("started_at", "finished_at") if task.get(name)])
    out.fields([("progress", _progress(task)), ("usage", _usage(task))])
    out.fields([("webhook", line) for line in _webhook(task)])
    subtasks = task.get("subtasks")
    rows = [
        (s.get("id"), s.get("status"), s.get("tool") or s.get("type"), s.get("attempts"), seconds(s.get("duration_ms")))
        for s in (subtasks if isinstance(subtasks, list) else [])
        if isinstance(s, dict)
    ]
    if rows:
        out.line()
        out.table(("SUBTASK", "STATUS", "TOOL", "ATTEMPTS", "TOOK"), rows)
    if task.get("subtasks_next_cursor"):
        out.line("… and more subtasks: /api/v1/tasks/{id}/subtasks gives them all")
    show_end(out, task)


def cancel(task_id: TaskId, as_json: AsJson = False) -> None:
    """Cancel a task; what runs is stopped."""
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.cancel(task_id)
    if as_json:
        out.json(answer)
    else:
        out.line(f"task {task_id} is being cancelled")
        for item in items_of(answer, "stopped"):
            phase = item.get("phase") or item.get("status")
            out.line(f"stopped: {item.get('subtask')}, attempt {item.get('attempt')}, in {phase}")
        done = answer.get("completed")
        if isinstance(done, dict) and done.get("count"):
            out.line(f"had completed: {done['count']}")


def _merge(body: JsonObject, name: str, more: JsonObject) -> None:
    given = body.get(name)
    if more:
        body[name] = {**given, **more} if isinstance(given, dict) else more


def _tools(allow: list[str] | None, deny: list[str] | None) -> JsonObject:
    return {name: list[Json](given) for name, given in (("allow", allow), ("deny", deny)) if given}


def _row(item: JsonObject) -> tuple[object, ...]:
    subtasks = item.get("subtasks")
    shown = f"{subtasks.get('settled')}/{subtasks.get('total')}" if isinstance(subtasks, dict) else ""
    shown += "+" if item.get("plan_open") is True else ""
    title = one_line(item.get("title") or item.get("prompt"))
    return (item.get("task_id"), item.get("status"), item.get("priority"), item.get("created_at"), shown, title[:80])


def _progress(task: JsonObject) -> str:
    progress = task.get("progress")
    if not isinstance(progress, dict):
        return ""
    counts = [f"{count} {name.replace('_', ' ')}" for name, count in progress.items() if name != "percent" and count]
    counts += [PLAN_OPEN] if task.get("plan_open") is True else []
    return f"{progress.get('percent', 0)} % ({', '.join(counts)})"


def _webhook(task: JsonObject) -> list[str]:
    told = task.get("webhook")
    if not isinstance(told, dict):
        return []
    error = f": {told['last_error']}" if told.get("last_error") else ""
    return [f"{told.get('status')} after {told.get('attempts')} attempts{error}"]


def _usage(task: JsonObject) -> str:
    usage = task.get("usage")
    return f"{usage.get('tokens', 0)} tokens, {usage.get('cost_usd', 0)} USD" if isinstance(usage, dict) else ""
