"""The commands for whoever runs the place: API keys and dead letters."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import AsJson, Limit
from rayloom.cluster.cli.output import Output, one_line
from rayloom.dag.values import Json, JsonObject

keys = typer.Typer(help="API keys (admin): list, create, delete.", rich_markup_mode=None)
dead_letters = typer.Typer(
    help="Dead letters, the subtasks that wait for a person: list, show, retry, discard.", rich_markup_mode=None
)

Id = Annotated[str, typer.Argument(metavar="ID")]


@keys.callback(invoke_without_command=True)
def default_key(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_keys(as_json=as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the API keys, without the keys themselves."""
    out = Output(as_json=as_json)
    with connect() as client:
        pages = list(client.pages("/api/v1/keys"))
    items = [item for page in pages for item in _objects(page.get("items"))]
    if as_json:
        out.json({**pages[0], "items": list[Json](items), "next_cursor": None})
        return
    columns = ("id", "user", "role", "created_at")
    out.table([column.upper() for column in columns], [[item.get(column) for column in columns] for item in items])


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Whose key it is; made if new.")],
    role: Annotated[str, typer.Option(help="user or admin.")] = "user",
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once."""
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.post("/api/v1/keys", {"user": user, "role": role})
    if as_json:
        out.json(answer)
    else:
        out.fields([(name, answer.get(name)) for name in ("id", "user", "user_id", "role", "key")])


@keys.command("delete")
def delete_key(key_id: Id, as_json: AsJson = False) -> None:
    """Delete an API key; requests with it are refused from then on."""
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.delete(f"/api/v1/keys/{quote(key_id, safe='')}")
    if as_json:
        out.json(answer)
    else:
        out.line(f"key {key_id} deleted")


@dead_letters.callback(invoke_without_command=True)
def default_letters(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_letters(as_json=as_json)


@dead_letters.command("list")
def list_letters(
    status: Annotated[str | None, typer.Option(help="open, retried or discarded.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only letters of this tool.")] = None,
    limit: Limit = 50,
    cursor: Annotated[str | None, typer.Option(help="Where an earlier page ended.")] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters."""
    out = Output(as_json=as_json)
    with connect() as client:
        page = client.get("/api/v1/dead-letters", {"status": status, "tool": tool, "limit": limit, "cursor": cursor})
    if as_json:
        out.json(page)
        return
    rows = []
    for letter in _objects(page.get("items")):
        error = letter.get("error")
        message = one_line(error.get("message")) if isinstance(error, dict) else ""
        rows.append([letter.get(name) for name in ("id", "status", "task_id", "subtask", "tool")] + [message])
    out.table(("LETTER", "STATUS", "TASK", "SUBTASK", "TOOL", "ERROR"), rows)


@dead_letters.command("show")
def show_letter(letter_id: Id, as_json: AsJson = False) -> None:
    """Show one dead letter."""
    out = Output(as_json=as_json)
    with connect() as client:
        letter = client.get(_letter(letter_id))
    if as_json:
        out.json(letter)
    else:
        out.value(letter)


@dead_letters.command("retry")
def retry_letter(letter_id: Id, as_json: AsJson = False) -> None:
    """Run the subtask of a dead letter again."""
    _act(letter_id, "retry", as_json=as_json)


@dead_letters.command("discard")
def discard_letter(letter_id: Id, as_json: AsJson = False) -> None:
    """Put a dead letter away; its subtask stays BLOCKED."""
    _act(letter_id, "discard", as_json=as_json)


def _act(letter_id: str, verb: str, *, as_json: bool) -> None:
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.post(f"{_letter(letter_id)}/{verb}", {})
    if as_json:
        out.json(answer)
    else:
        out.line(f"letter {letter_id}: {verb} accepted")


def _letter(letter_id: str) -> str:
    return f"/api/v1/dead-letters/{quote(letter_id, safe='')}"


def _objects(items: Json) -> list[JsonObject]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
