"""The options that several commands share, and the JSON that they take."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import orjson
import typer

from rayloom.cluster.cli.output import Output
from rayloom.dag.values import Json, JsonObject

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the API's own JSON.")]
InJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TaskId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The task's id.")]
Limit: TypeAlias = Annotated[int, typer.Option("--limit", min=1, max=500, help="How many to show.")]
Cursor: TypeAlias = Annotated[str | None, typer.Option("--cursor", help="Where an earlier page ended.")]
After: TypeAlias = Annotated[str | None, typer.Option(help="Only later ones; RFC 3339 time.")]
Before: TypeAlias = Annotated[str | None, typer.Option(help="Only earlier ones; RFC 3339 time.")]
BudgetTokens: TypeAlias = Annotated[int | None, typer.Option("--budget-max-tokens", min=0, help="So many tokens.")]
BudgetCost: TypeAlias = Annotated[
    float | None, typer.Option("--budget-max-cost-usd", min=0, help="So many US dollars, of models.")
]
LIMIT = 50
"""How many to show unless it is said."""


Options: TypeAlias = Mapping[str, str | int | bool | Sequence[str] | None]


def budget_of(*, deadline_s: float | None, max_tokens: int | None, max_cost_usd: float | None) -> JsonObject:
    """The limits of a task that are given. Ends with a usage error where one is not finite: JSON would say null."""
    limits = {"deadline_s": deadline_s, "max_tokens": max_tokens, "max_cost_usd": max_cost_usd}
    for name, limit in limits.items():
        if limit is not None and not limit < math.inf:
            raise typer.BadParameter(f"`{limit}` is no finite number", param_hint=name)
    return {name: limit for name, limit in limits.items() if limit is not None}


def command_line(command: str, options: Options) -> str:
    """A command with those of these options that are given, as one would type it."""
    words = [command]
    for option, given in options.items():
        if given is True:
            words.append(option)
        elif given is not None and given is not False:
            values = [str(given)] if isinstance(given, str | int) else given
            words += [f"{option} {shlex.quote(value)}" for value in values]
    return " ".join(words)


def tell_more(out: Output, page: Mapping[str, object], command: str, options: Options, *, limit: int) -> None:
    """How to see the next page of a list, if there is one: the same command, further on."""
    cursor = page.get("next_cursor")
    if out.rich and isinstance(cursor, str):
        further: Options = {**options, "--limit": None if limit == LIMIT else limit, "--cursor": cursor}
        out.line("more: " + command_line(command, further))


def read_json(source: str, *, name: str) -> Json:
    """The JSON of a file, or of standard input for ``-``. Ends with a usage error when there is none."""
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{source}: {error.strerror or error}", param_hint=name) from error
    return parse_json(raw, name=f"{name} {source}")


def read_object(source: str, *, name: str) -> JsonObject:
    """As ``read_json``, for a JSON object."""
    return _an_object(read_json(source, name=name), name=name)


def parse_json(raw: bytes | str, *, name: str) -> Json:
    """JSON text given on the command line. Ends with a usage error when it is not JSON."""
    try:
        document: Json = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint=name) from error
    return document


def parse_object(raw: str, *, name: str) -> JsonObject:
    """A JSON object given on the command line, or ``@file`` that holds one."""
    document = read_json(raw[1:], name=name) if raw.startswith("@") else parse_json(raw, name=name)
    return _an_object(document, name=name)


def parse_pairs(pairs: list[str], *, name: str) -> dict[str, str]:
    """``key=value`` pairs. Ends with a usage error for anything else."""
    parsed = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint=name)
        parsed[key] = value
    return parsed


def _an_object(document: Json, *, name: str) -> JsonObject:
    if not isinstance(document, dict):
        raise typer.BadParameter("a JSON object is wanted", param_hint=name)
    return document
