"""The commands on webhooks: list, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import LIMIT, AsJson, Cursor, Limit, tell_more
from rayloom.cluster.cli.output import Output, items_of, one_line
from rayloom.serve.parameters import segment

webhooks = typer.Typer(help="Webhooks of tasks that have ended: list, cancel.", rich_markup_mode=None)

PATH = "/api/v1/webhooks"


@webhooks.callback(invoke_without_command=True)
def default_webhooks(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_webhooks(as_json=as_json)


@webhooks.command("list")
def list_webhooks(
    status: Annotated[str | None, typer.Option(help="pending, delivered, failed or cancelled; else all.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Webhooks of this user (admin).")] = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List webhooks, newest first."""
    out = Output(as_json=as_json)
    with connect() as client:
        page = client.get(PATH, {"status": status, "user_id": user_id, "limit": limit, "cursor": cursor})
    if as_json:
        out.json(page)
        return
    columns = ("id", "status", "attempts", "next_attempt_at", "task_id", "task_status", "url", "last_error")
    out.table(
        ("WEBHOOK", "STATUS", "ATTEMPTS", "NEXT ATTEMPT", "TASK", "ENDED AS", "URL", "LAST ERROR"),
        [[item.get(name) for name in columns] for item in items_of(page, "items")],
    )
    tell_more(out, page, "rayloom webhooks list", {"--status": status, "--user-id": user_id}, limit=limit)


@webhooks.command("cancel")
def cancel_webhook(
    webhook_id: Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")],
    user_id: Annotated[str | None, typer.Option(help="The webhook is of this user (admin).")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a pending webhook: no further attempt is made."""
    out = Output(as_json=as_json)
    with connect() as client:
        webhook = client.post(f"{PATH}/{segment(webhook_id)}/cancel", {}, {"user_id": user_id})
    if as_json:
        out.json(webhook)
        return
    out.line(f"webhook {one_line(webhook.get('id'))} is cancelled")
