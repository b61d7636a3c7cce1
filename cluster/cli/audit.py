"""`rayloom audit`: who called which tool, and how it ended."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import LIMIT, After, AsJson, Before, Cursor, Limit, tell_more
from rayloom.cluster.cli.output import Output, items_of


def audit(
    user_id: Annotated[str | None, typer.Option(help="Only calls of this user.")] = None,
    key_id: Annotated[str | None, typer.Option(help="Only calls of tasks submitted with this key.")] = None,
    task: Annotated[str | None, typer.Option(help="Only calls of the task of this id.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only calls of this tool.")] = None,
    created_after: After = None,
    created_before: Before = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List calls of tools, newest first (admin)."""
    out = Output(as_json=as_json)
    params = {
        "user_id": user_id,
        "key_id": key_id,
        "task_id": task,
        "tool": tool,
        "created_after": created_after,
        "created_before": created_before,
        "limit": limit,
        "cursor": cursor,
    }
    with connect() as client:
        page = client.get("/api/v1/audit", params)
    if as_json:
        out.json(page)
        return
    items = items_of(page, "items")
    columns = ("at", "user", "tool", "outcome", "code", "task_id", "subtask", "attempt", "input_sha256")
    out.table([column.upper() for column in columns], [[item.get(column) for column in columns] for item in items])
    options = {
        "--user-id": user_id,
        "--key-id": key_id,
        "--task": task,
        "--tool": tool,
        "--created-after": created_after,
        "--created-before": created_before,
    }
    tell_more(out, page, "rayloom audit", options, limit=limit)
