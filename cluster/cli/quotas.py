"""What was used, and how much may be: `rayloom usage` and `rayloom quotas`."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.options import After, AsJson, Before
from rayloom.cluster.cli.output import Output, items_of
from rayloom.dag.values import Json
from rayloom.serve.parameters import segment

NONE = "none"
_Limit = Annotated[str | None, typer.Option(metavar="NUMBER", help=f"Set it; `{NONE}` takes it away.")]


def usage(
    user_id: Annotated[str | None, typer.Option(help="Of this user (admin).")] = None,
    created_after: After = None,
    created_before: Before = None,
    as_json: AsJson = False,
) -> None:
    """Tokens and cost used, by day, model and tool, and which limits are nearly used up; of 30 days unless told."""
    out = Output(as_json=as_json)
    params = {"user_id": user_id, "created_after": created_after, "created_before": created_before}
    with connect() as client:
        used = client.get("/api/v1/usage", params)
    if as_json:
        out.json(used)
        return
    columns = ("day", "model", "tool", "tokens_in", "tokens_out", "cost_usd")
    rows = [[item.get(column) for column in columns] for item in items_of(used, "items")]
    out.table([column.upper() for column in columns], rows)
    total, reserved, warnings = used.get("total"), used.get("reserved"), used.get("warnings")
    told: list[tuple[str, object]] = []
    if isinstance(total, dict):
        both = f"{total.get('tokens_in')} + {total.get('tokens_out')} tokens"
        told.append(("total", f"{both}, {total.get('cost_usd')} USD"))
    if isinstance(reserved, dict):
        told.append(("reserved", f"{reserved.get('tokens')} tokens, {reserved.get('cost_usd')} USD"))
    told += [("warning", warning) for warning in (warnings if isinstance(warnings, list) else [])]
    for alert in items_of(used, "alerts"):
        share, over = alert.get("share"), alert.get("over_at")
        part = f"{share:.0%}" if isinstance(share, int | float) else share
        end = f", until {over}" if over else ""
        told.append(("alert", f"{alert.get('at')}{end}: {part} of {alert.get('limit')} of {_whose(alert)}"))
    out.fields(told)


def quotas(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The user's id, or the key's with --key.")],
    key: Annotated[bool, typer.Option("--key", help="Those of an API key.")] = False,
    max_tokens: _Limit = None,
    max_cost_usd: _Limit = None,
    tokens_per_min: _Limit = None,
    requests_per_min: _Limit = None,
    max_concurrent: _Limit = None,
    as_json: AsJson = False,
) -> None:
    """Show the limits of a user, or of an API key; change those that are given (admin)."""
    out = Output(as_json=as_json)
    given = {
        "max_tokens": max_tokens,
        "max_cost_usd": max_cost_usd,
        "tokens_per_min": tokens_per_min,
        "requests_per_min": requests_per_min,
        "max_concurrent": max_concurrent,
    }
    changed = {name: _limit(name, text) for name, text in given.items() if text is not None}
    named = segment(id_)
    path = f"/api/v1/keys/{named}/quota" if key else f"/api/v1/quotas/{named}"
    with connect() as client:
        limits = client.get(path)
        if changed:
            limits = client.put(path, {**limits, **changed})
    if as_json:
        out.json(limits)
    else:
        out.fields([(name, limits.get(name)) for name in given])


def _whose(alert: dict[str, Json]) -> str:
    return f"{alert.get('level')} {alert.get('id')}"


def _limit(name: str, text: str) -> Json:
    """A limit as it is said on the command line. Ends with a usage error where it is no number from 0 on."""
    if text == NONE:
        return None
    try:
        limit = float(text) if name == "max_cost_usd" else int(text)
    except ValueError as error:
        raise typer.BadParameter(f"`{text}` is no number, nor `{NONE}`", param_hint=name) from error
    # JSON has no word for these: they would be sent as null, which takes the limit away.
    if not 0 <= limit < math.inf:
        raise typer.BadParameter(f"`{text}` is no finite number from 0 on; `{NONE}` takes it away", param_hint=name)
    return limit
