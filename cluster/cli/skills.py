"""`rayloom tools register-skill`: a Skill of this machine, looked over here and uploaded."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from rayloom.cluster.cli.connection import connect
from rayloom.cluster.cli.exits import ExitCode
from rayloom.cluster.cli.options import AsJson
from rayloom.cluster.cli.output import Output, complain, one_line


def register_skill(
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with a SKILL.md, or a zip of one.")],
    check: Annotated[bool, typer.Option("--check", help="Only look whether it is a Skill; upload nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Register a Skill of this machine (admin); every fault is told."""
    from rayloom.tools.skills.front_matter import InvalidSkill

    out = Output(as_json=as_json)
    try:
        name, archive = _read(source)
    except InvalidSkill as error:
        for fault in error.faults:
            complain(f"{source}: {fault}")
        raise typer.Exit(ExitCode.ERROR) from None
    except OSError as error:
        complain(f"{source} can't be read: {error.strerror}")
        raise typer.Exit(ExitCode.ERROR) from None
    if check:
        if as_json:
            out.json({"name": f"skill.{name}", "registered": False})
        else:
            out.line(f"skill.{name}")
        return
    body = {"type": "SKILL", "name": name, "archive_base64": base64.b64encode(archive).decode()}
    with connect(timeout_s=120.0) as client:
        answer = client.post("/api/v1/tools/register", dict(body))
    if as_json:
        out.json(answer)
    else:
        out.line(one_line(answer.get("name")))


def _read(source: Path) -> tuple[str, bytes]:
    """The name of the Skill, and an archive of it. Raises InvalidSkill and OSError."""
    from rayloom.tools.skills.archive import from_zip
    from rayloom.tools.skills.folder import from_folder
    from rayloom.tools.skills.front_matter import InvalidSkill
    from rayloom.tools.skills.skill import MAX_BYTES, read_skill

    source = source.resolve()
    if source.is_dir():
        files, folder = from_folder(source.parent, source.name)
        return read_skill(files, folder=folder).about.name, _zipped(files)
    with source.open("rb") as opened:
        data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InvalidSkill((f"has more than {MAX_BYTES:,} bytes",))
    files, top = from_zip(data)
    return read_skill(files, folder=top).about.name, data


def _zipped(files: Mapping[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return held.getvalue()
