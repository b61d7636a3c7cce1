"""The commands that read what a task left behind: logs and trace."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.options import AsJson, TaskId
from rayloom.cluster.cli.output import Output, json_text, one_line
from rayloom.dag.errors import UserError
from rayloom.dag.values import Json, JsonObject

LEVEL_STYLES = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow", "DEBUG": "dim"}


class TraceFormat(StrEnum):
    """The forms of a trace."""

    json = "json"
    otlp = "otlp"
    chrome = "chrome"


def logs(
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    subtask: Annotated[str | None, typer.Option(help="Only this subtask.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt.")] = None,
    stream: Annotated[str | None, typer.Option(help="system, stdout, stderr, tool or model.")] = None,
    level: Annotated[str | None, typer.Option(help="Only this level.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a task's log, oldest first. With --json one document, or with -f one line of JSON a log line."""
    out = Output(as_json=as_json)
    params = {
        "subtask": subtask,
        "attempt": attempt,
        "stream": stream,
        "level": level.upper() if level else None,
    }
    with connect() as client:
        if follow:
            try:
                for event in client.follow_logs(task_id, params):
                    _show_line(out, event.data)
            except KeyboardInterrupt:
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            return
        lines: list[Json] = []
        for page in client.logs(task_id, {**params, "limit": 500}):
            items = page.get("items")
            for line in items if isinstance(items, list) else []:
                if as_json:
                    lines.append(line)
                elif isinstance(line, dict):
                    _show_line(out, line)
    if as_json:
        out.json({"items": lines, "next_cursor": None})


def trace(
    task_id: TaskId,
    form: Annotated[TraceFormat | None, typer.Option("--format", help="json, otlp or chrome.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where a task's time went, as a waterfall; or export its trace."""
    out = Output(as_json=as_json or form is not None)
    with connect() as client:
        exported = form.value if form in (TraceFormat.otlp, TraceFormat.chrome) else None
        document = client.trace(task_id, form=exported)
    if output is not None:
        try:
            output.write_bytes(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            raise UserError("NOT_WRITTEN", f"can't write {output}: {error.strerror or error}") from error
        if as_json:
            out.json({"task_id": task_id, "output": str(output)})
        else:
            out.line(f"trace of task {task_id} written to {output}")
    elif out.as_json or not isinstance(document, dict):
        out.json(document)
    else:
        from rayloom.cluster.cli.waterfall import show_waterfall

        show_waterfall(out, document)


def _show_line(out: Output, line: JsonObject) -> None:
    if out.as_json:
        typer.echo(json_text(line))
        return
    where = one_line(line.get("subtask")) or "-"
    attempt = line.get("attempt")
    if isinstance(attempt, int) and attempt > 0:
        where += f"#{attempt}"
    level, stream = one_line(line.get("level")), one_line(line.get("stream"))
    message, at = one_line(line.get("message")), one_line(line.get("at"))
    if not out.rich:
        out.line("\t".join((at, level, stream, where, message)))
        return
    from rich.text import Text

    text = Text()
    text.append(f"{at[11:23]} ", style="dim")
    text.append(f"{where} ", style="cyan")
    text.append(f"{stream} ", style="dim")
    text.append(message, style=LEVEL_STYLES.get(level, ""))
    out.console.print(text, soft_wrap=True)
