"""The commands of the tool registry: list, show, invoke, register, on, off, remove, breaker."""

from __future__ import annotations

from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.options import AsJson, parse_object, parse_pairs
from rayloom.cluster.cli.output import Output, complain, items_of, one_line, seconds
from rayloom.cluster.cli.skills import register_skill
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.parameters import segment

tools = typer.Typer(help="Tools: list, show, invoke, register, on, off, remove, breaker.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The tool's name.")]


@tools.callback(invoke_without_command=True)
def default(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_tools(as_json=as_json)


@tools.command("list")
def list_tools(as_json: AsJson = False) -> None:
    """List the tools that I may use."""
    out = Output(as_json=as_json)
    with connect() as client:
        pages = list(client.pages("/api/v1/tools"))
    items = [item for page in pages for item in items_of(page, "items")]
    if as_json:
        out.json({**pages[0], "items": list[Json](items), "next_cursor": None})
        return
    rows = [
        (
            item.get("name"),
            item.get("type"),
            item.get("permission_level"),
            "on" if item.get("is_active") else "off",
            _breaker(item),
            one_line(item.get("description")),
        )
        for item in items
    ]
    out.table(("TOOL", "TYPE", "PERMISSION", "ACTIVE", "BREAKER", "DESCRIPTION"), rows)


@tools.command("show")
def show_tool(name: Name, as_json: AsJson = False) -> None:
    """Show one tool, with its input schema; or an MCP server (admin)."""
    out = Output(as_json=as_json)
    with connect() as client:
        tool = client.get(_path(name))
    if as_json:
        out.json(tool)
        return
    if "schema" not in tool:
        out.value(tool)
        return
    plain = ("name", "type", "version", "permission_level", "is_active", "health", "description")
    stats = tool.get("stats")
    out.fields([(field, tool.get(field)) for field in plain])
    out.fields([("breaker", _breaker(tool))])
    if isinstance(stats, dict):
        out.fields([(field, value) for field, value in stats.items()])
    out.line("schema:")
    out.value(tool.get("schema"))


@tools.command("invoke")
def invoke_tool(
    name: Name,
    given: Annotated[str, typer.Argument(metavar="JSON", help="The input: a JSON object, or @file, or @-.")] = "{}",
    timeout_s: Annotated[float | None, typer.Option(min=0, help="Stop it after so many seconds.")] = None,
    as_json: AsJson = False,
) -> None:
    """Call one tool directly and print its output. A failure of the tool ends with exit code 1."""
    out = Output(as_json=as_json)
    body: JsonObject = {"input": parse_object(given, name="JSON")}
    if timeout_s is not None:
        body["timeout_s"] = timeout_s
    with connect(timeout_s=None if timeout_s is None else timeout_s + 30) as client:
        answer = client.post(f"{_path(name)}/invoke", body)
    error = answer.get("error")
    if as_json:
        out.json(answer)
    elif isinstance(error, dict):
        complain(f"{name}: {one_line(error.get('code'))}: {one_line(error.get('message'))}")
    else:
        out.value(answer.get("output"))
        if out.rich:
            typer.echo(f"took {seconds(answer.get('duration_ms'))}", err=True)
    if error is not None:
        raise typer.Exit(ExitCode.ERROR)


@tools.command("register")
def register_tool(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that is free.")],
    kind: Annotated[str, typer.Option("--type", help="NATIVE, MCP or SKILL.")] = "NATIVE",
    endpoint: Annotated[str | None, typer.Option(help="NATIVE: an installed entry point.")] = None,
    url: Annotated[str | None, typer.Option(help="MCP over HTTP: its address.")] = None,
    sse: Annotated[bool, typer.Option("--sse", help="MCP over HTTP: by the older SSE.")] = False,
    server: Annotated[
        str | None, typer.Option(metavar="JSON", help="MCP: a server.json of its registry: JSON, or @file, or @-.")
    ] = None,
    bearer: Annotated[str | None, typer.Option(metavar="TOKEN", help="MCP over HTTP: goes with each request.")] = None,
    readable: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="MCP over stdio: what it may read in the sandbox.")
    ] = None,
    command: Annotated[list[str] | None, typer.Option(help="MCP over stdio: one word of its command each.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="MCP over stdio: environment.")] = None,
    header: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="MCP over HTTP: headers.")] = None,
    trusted: Annotated[bool, typer.Option("--trusted", help="MCP over stdio: run outside the sandbox.")] = False,
    path: Annotated[str | None, typer.Option(help="SKILL: a folder below RAYLOOM_SKILLS_DIR.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a tool (admin)."""
    body: JsonObject = {"type": kind.upper(), "name": name}
    if kind.upper() == "MCP" and server is None:
        body["transport"] = "stdio" if command else "sse" if sse else "http"
    options: JsonObject = {
        "endpoint": endpoint,
        "url": url,
        "command": list[Json](command) if command else None,
        "env": dict[str, Json](parse_pairs(env, name="--env")) if env else None,
        "headers": dict[str, Json](parse_pairs(header, name="--header")) if header else None,
        "trusted": trusted or None,
        "server": parse_object(server, name="--server") if server is not None else None,
        "auth": {"type": "bearer", "token": bearer} if bearer is not None else None,
        "readable": list[Json](readable) if readable else None,
        "path": path,
    }
    body.update({field: value for field, value in options.items() if value is not None})
    out = Output(as_json=as_json)
    with connect(timeout_s=120.0) as client:
        answer = client.post("/api/v1/tools/register", body)
    if as_json:
        out.json(answer)
        return
    made = answer.get("tools")
    for tool in made if isinstance(made, list) else [answer.get("name")]:
        out.line(one_line(tool))


tools.command("register-skill")(register_skill)


@tools.command("on")
def switch_on(name: Name, as_json: AsJson = False) -> None:
    """Switch a tool on, or an MCP server with all its tools (admin)."""
    _switch(name, on=True, as_json=as_json)


@tools.command("off")
def switch_off(name: Name, as_json: AsJson = False) -> None:
    """Switch a tool off, or an MCP server with all its tools (admin)."""
    _switch(name, on=False, as_json=as_json)


def _switch(name: str, *, on: bool, as_json: bool) -> None:
    out = Output(as_json=as_json)
    with connect() as client:
        answer = client.patch(_path(name), {"is_active": on})
    if as_json:
        out.json(answer)
        return
    out.line(f"{name} is {'on' if answer.get('is_active') else 'off'}")


@tools.command("remove")
def remove_tool(name: Name, as_json: AsJson = False) -> None:
    """Remove a tool that is not built in, or an MCP server with all its tools (admin)."""
    out = Output(as_json=as_json)
    with connect() as client:
        client.delete(_path(name))
    if as_json:
        out.json({"name": name, "removed": True})


@tools.command("breaker")
def set_breaker(
    name: Name,
    close: Annotated[bool, typer.Option("--close", help="Let calls through, and count them.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Stop calls until it is closed by hand.")] = False,
    off: Annotated[bool, typer.Option("--off", help="Close it, and never open it.")] = False,
    alternative: Annotated[
        str | None, typer.Option(metavar="TOOL", help="Call this one while it is open; '' for none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the breaker of a tool, or set it (admin)."""
    wishes = [wish for wish, given in (("closed", close), ("open", open_), ("off", off)) if given]
    if len(wishes) > 1:
        raise typer.BadParameter("give one of --close, --open and --off")
    body: JsonObject = {"breaker": wishes[0]} if wishes else {}
    if alternative is not None:
        body["alternative"] = alternative or None
    out = Output(as_json=as_json)
    with connect() as client:
        tool = client.patch(_path(name), body) if body else client.get(_path(name))
    if as_json:
        out.json(tool)
        return
    out.line(_breaker(tool))


def _path(name: str) -> str:
    return f"/api/v1/tools/{segment(name)}"


def _breaker(tool: JsonObject) -> str:
    breaker = tool.get("breaker")
    if not isinstance(breaker, dict):
        return ""
    state, retry_at = one_line(breaker.get("state")), breaker.get("retry_at")
    return f"{state} until {one_line(retry_at)}" if state == "open" and retry_at else state
