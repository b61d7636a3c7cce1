"""The commands for whoever runs the place: API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import AsJson
from rayloom.cluster.cli.output import Output, items_of
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.parameters import segment

keys = typer.Typer(help="API keys (admin): list, create, delete.", rich_markup_mode=None)

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
    items = [item for page in pages for item in items_of(page, "items")]
    if as_json:
        out.json({**pages[0], "items": list[Json](items), "next_cursor": None})
        return
    columns = ("id", "user", "role", "created_at")
    rows = [[*(item.get(column) for column in columns), _narrowed(item)] for item in items]
    out.table([*(column.upper() for column in columns), "TOOLS"], rows)


@keys.command("create")
def create_key(
    user: Annotated[str, typer.Option(help="Whose key it is; made if new.")],
    role: Annotated[str, typer.Option(help="user or admin.")] = "user",
    allow: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="It may use these tools only.")] = None,
    deny: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="It may not use these tools.")] = None,
    max_level: Annotated[str | None, typer.Option(help="It may use tools up to read, write or execute.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once."""
    out = Output(as_json=as_json)
    body: JsonObject = {"user": user, "role": role}
    if allow or deny:
        body["tools"] = {"allow": list[Json](allow or ["*"]), "deny": list[Json](deny or [])}
    if max_level is not None:
        body["max_level"] = max_level
    with connect() as client:
        answer = client.post("/api/v1/keys", body)
    if as_json:
        out.json(answer)
    else:
        out.fields([(name, answer.get(name)) for name in ("id", "user", "user_id", "role", "key")])


@keys.command("delete")
def delete_key(key_id: Id, as_json: AsJson = False) -> None:
    """Delete an API key; requests with it are refused from then on."""
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.delete(f"/api/v1/keys/{segment(key_id)}")
    if as_json:
        out.json(answer)
    else:
        out.line(f"key {key_id} deleted")


def _narrowed(key: JsonObject) -> str:
    """Which tools a key may use, in short; empty: all that its role may."""
    tools, level = key.get("tools"), key.get("max_level")
    said = [] if level is None else [f"up to {level}"]
    if isinstance(tools, dict):
        said += [
            f"{verb} {' '.join(map(str, globs))}" for verb, globs in tools.items() if isinstance(globs, list) and globs
        ]
    return ", ".join(said)
