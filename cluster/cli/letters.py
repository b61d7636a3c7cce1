"""The commands on dead letters: look, group by cause, retry, discard; one letter, or all that a filter gives."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from rayloom.cluster.cli.connection import BULK_TIMEOUT_S, connect
from rayloom.cluster.cli.options import (
    LIMIT,
    After,
    AsJson,
    Before,
    Cursor,
    Limit,
    parse_object,
    parse_pairs,
    tell_more,
)
from rayloom.cluster.cli.output import Output, items_of, one_line, seconds
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.parameters import segment

dead_letters = typer.Typer(
    help="Dead letters, the subtasks that wait for a person: list, show, retry, discard.", rich_markup_mode=None
)

PATH = "/api/v1/dead-letters"
Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The letter's id.")]
SomeId: TypeAlias = Annotated[str | None, typer.Argument(metavar="[ID]", help="One letter; else filters, or --all.")]
Tool: TypeAlias = Annotated[str | None, typer.Option(help="Only letters of this tool.")]
Task: TypeAlias = Annotated[str | None, typer.Option(help="Only letters of the task of this id.")]
Fingerprint: TypeAlias = Annotated[str | None, typer.Option(help="Only letters of this cause (see list --group).")]
Code: TypeAlias = Annotated[str | None, typer.Option(help="Only letters with this error code.")]
Labels: TypeAlias = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only of tasks so labelled.")]
All: TypeAlias = Annotated[bool, typer.Option("--all", help="Every open letter.")]
UserId: TypeAlias = Annotated[str | None, typer.Option(help="Somebody else's letters (admin).")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")]


@dead_letters.callback(invoke_without_command=True)
def default_letters(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a command: list."""
    if context.invoked_subcommand is None:
        list_letters(as_json=as_json)


@dead_letters.command("list")
def list_letters(
    status: Annotated[str | None, typer.Option(help="open (unless given), retried or discarded.")] = None,
    tool: Tool = None,
    task: Task = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    created_after: After = None,
    created_before: Before = None,
    label: Labels = None,
    group: Annotated[bool, typer.Option("--group", help="Count letters of equal cause.")] = False,
    user_id: UserId = None,
    limit: Limit = LIMIT,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first, or their causes, the most frequent first."""
    out = Output(as_json=as_json)
    params = {
        "status": status,
        "tool": tool,
        "task_id": task,
        "fingerprint": fingerprint,
        "code": code,
        "created_after": created_after,
        "created_before": created_before,
        "label": [f"{name}={value}" for name, value in parse_pairs(label or [], name="--label").items()],
        "group": "fingerprint" if group else None,
        "user_id": user_id,
        "limit": limit,
        "cursor": cursor,
    }
    with connect() as client:
        page = client.get(PATH, params)
    if as_json:
        out.json(page)
        return
    items = items_of(page, "items")
    if group:
        rows: list[list[object]] = [
            [item.get("fingerprint"), item.get("count"), *_cause(item.get("sample"))] for item in items
        ]
        out.table(("CAUSE", "LETTERS", "TOOL", "ERROR"), rows)
    else:
        columns = ("id", "status", "task_id", "subtask")
        rows = [[*(item.get(name) for name in columns), *_cause(item)] for item in items]
        out.table(("LETTER", "STATUS", "TASK", "SUBTASK", "TOOL", "ERROR"), rows)
    options = {
        "--status": status,
        "--tool": tool,
        "--task": task,
        "--fingerprint": fingerprint,
        "--code": code,
        "--created-after": created_after,
        "--created-before": created_before,
        "--label": label,
        "--group": group,
        "--user-id": user_id,
    }
    tell_more(out, page, "rayloom dead-letters list", options, limit=limit)


@dead_letters.command("show")
def show_letter(letter_id: Id, user_id: UserId = None, as_json: AsJson = False) -> None:
    """Show one dead letter: its error, its attempts, its input."""
    out = Output(as_json=as_json)
    with connect() as client:
        letter = client.get(_path(letter_id), {"user_id": user_id})
    if as_json:
        out.json(letter)
        return
    names = ("id", "status", "task_id", "subtask", "tool", "fingerprint", "at")
    out.fields([(name, letter.get(name)) for name in names])
    out.fields([("error", _cause(letter)[1])])
    rows = [
        [attempt.get("attempt"), attempt.get("status"), seconds(attempt.get("duration_ms")), _cause(attempt)[1]]
        for attempt in items_of(letter, "attempts")
    ]
    if rows:
        out.line()
        out.table(("ATTEMPT", "STATUS", "TOOK", "ERROR"), rows)
    out.line("input:")
    out.value(letter.get("input"))


@dead_letters.command("retry")
def retry_letter(
    letter_id: SomeId = None,
    given: Annotated[
        str | None, typer.Option("--input", help="Another input for this one letter: a JSON object, or @file.")
    ] = None,
    tool: Tool = None,
    task: Task = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    created_after: After = None,
    created_before: Before = None,
    label: Labels = None,
    every: All = False,
    dry_run: DryRun = False,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Run the subtask of a dead letter again, or those of all that the filters give. Completed work is kept."""
    filter_ = _filter(tool, task, fingerprint, code, created_after, created_before, label)
    body: JsonObject = {} if given is None else {"input": parse_object(given, name="--input")}
    if given is not None and letter_id is None:
        raise typer.BadParameter("wants the id of one letter", param_hint="--input")
    _act("retry", letter_id, body, filter_, every=every, dry_run=dry_run, user_id=user_id, as_json=as_json)


@dead_letters.command("discard")
def discard_letter(
    letter_id: SomeId = None,
    tool: Tool = None,
    task: Task = None,
    fingerprint: Fingerprint = None,
    code: Code = None,
    created_after: After = None,
    created_before: Before = None,
    label: Labels = None,
    every: All = False,
    dry_run: DryRun = False,
    user_id: UserId = None,
    as_json: AsJson = False,
) -> None:
    """Put a dead letter away, or all that the filters give; their subtasks stay BLOCKED."""
    filter_ = _filter(tool, task, fingerprint, code, created_after, created_before, label)
    _act("discard", letter_id, {}, filter_, every=every, dry_run=dry_run, user_id=user_id, as_json=as_json)


def _filter(
    tool: str | None,
    task: str | None,
    fingerprint: str | None,
    code: str | None,
    created_after: str | None,
    created_before: str | None,
    label: list[str] | None,
) -> JsonObject:
    given: dict[str, Json] = {
        "tool": tool,
        "task_id": task,
        "fingerprint": fingerprint,
        "code": code,
        "created_after": created_after,
        "created_before": created_before,
        "labels": dict[str, Json](parse_pairs(label or [], name="--label")) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _act(
    verb: str,
    letter_id: str | None,
    body: JsonObject,
    filter_: JsonObject,
    *,
    every: bool,
    dry_run: bool,
    user_id: str | None,
    as_json: bool,
) -> None:
    if letter_id is not None and (filter_ or every or dry_run):
        raise typer.BadParameter("give either the id of a letter, or filters")
    if letter_id is None and not filter_ and not every:
        raise typer.BadParameter("the id of a letter, a filter, or --all is wanted")
    out = Output(as_json=as_json)
    whose = {"user_id": user_id}
    with connect(timeout_s=BULK_TIMEOUT_S) as client:
        if letter_id is not None:
            answer = client.post(f"{_path(letter_id)}/{verb}", body, whose)
        else:
            answer = client.post(f"{PATH}/{verb}", {"filter": filter_, "dry_run": dry_run}, whose)
    if as_json:
        out.json(answer)
    elif letter_id is not None:
        out.line(f"letter {letter_id}: {verb} accepted")
    else:
        out.fields([(name, answer.get(name)) for name in ("matched", "accepted")])


def _path(letter_id: str) -> str:
    return f"{PATH}/{segment(letter_id)}"


def _cause(letter: Json) -> list[str]:
    """The tool, and the code and message of the error."""
    if not isinstance(letter, dict):
        return ["", ""]
    error = letter.get("error")
    told = f"{one_line(error.get('code'))}: {one_line(error.get('message'))}" if isinstance(error, dict) else ""
    return [one_line(letter.get("tool")), told]
