"""The commands that make what sandboxes need, and try them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.options import InJson
from rayloom.cluster.cli.output import Output

sandbox = typer.Typer(no_args_is_help=True, help="Sandboxes: make their image, try them.", rich_markup_mode=None)


@sandbox.command()
def build(
    python: Annotated[
        str | None, typer.Option(help="The interpreter to put in; else /usr/bin/python3, or the one that runs this.")
    ] = None,
    as_json: InJson = False,
) -> None:
    """Make the container image of sandboxes from this machine's own Python and shell: no registry, no network."""
    from rayloom.cluster.settings_of_up import settings_here
    from rayloom.tools.sandbox import image
    from rayloom.tools.sandbox.engine import Engine

    settings = settings_here().docker
    size_bytes = asyncio.run(image.build(Engine(settings.address), image.NAME, python=python))
    out = Output(as_json=as_json)
    if as_json:
        out.json({"image": image.NAME, "size_bytes": size_bytes})
        return
    out.line(f"built {image.NAME} ({size_bytes / 1e6:.1f} MB)")
    if settings.image:
        out.line(f"RAYLOOM_SANDBOX_IMAGE names another: {settings.image}")


@sandbox.command()
def check(as_json: InJson = False) -> None:
    """Run an empty program in the sandbox that the settings mean, and say which that is. Exit code 0 if it confines."""
    from rayloom.cluster import checks
    from rayloom.cluster.settings_of_up import settings_here

    found = checks.sandbox(settings_here(), tries=True)
    out = Output(as_json=as_json)
    if as_json:
        out.json({"state": found.level, "detail": found.detail, "advice": found.advice})
    else:
        out.fields([("state", found.level), ("detail", found.detail), ("advice", found.advice)])
    raise typer.Exit(ExitCode.OK if found.level == "ok" else ExitCode.ERROR)
