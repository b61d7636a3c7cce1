"""What somebody is told, and asked, before a model is downloaded: what it is, whose, under which licence, how large."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.local_model.catalogue import LocalModel
from rayloom.cluster.local_model.memory import MB


def terms(model: LocalModel) -> list[str]:
    """What is told, line by line."""
    return [
        f"The local model `{model.name}` is not on this machine yet.",
        f"  model     {model.title}: {model.good_for}",
        f"  from      {model.source}; with the server: {model.requirement_of_library}",
        f"  licence   {model.licence}",
        f"            {model.licence_text}",
        f"  download  {model.download_bytes // MB} MB; {model.size_bytes // MB} MB stay on the disk, "
        f"and {model.memory_bytes // MB} MB of memory are taken while it runs",
    ]


def ask(model: LocalModel, *, accepted: bool, tell: Callable[[str], None]) -> None:
    """Tell the terms and have them accepted. ``accepted``: they were, in advance.

    Raises StartRefused where they are not, or nobody can be asked.
    """
    for line in terms(model):
        tell(line)
    if accepted:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise StartRefused(
            f"the licence of the local model `{model.name}` must be accepted first, and nobody can be asked here: read "
            "it, and say --accept-licence, or set RAYLOOM_LOCAL_MODEL_LICENCE=accept"
        )
    try:
        if typer.confirm("Accept the licence and download it?", err=True):
            return
    except typer.Abort:
        typer.echo(err=True)
    raise StartRefused(f"nothing was downloaded: without its licence there is no local model `{model.name}`")
