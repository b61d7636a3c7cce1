"""The demonstration: rayloom reads its own source code and writes a report about it.

A real task on real input that is always there. Every room is measured in a sandbox of its own, in parallel; three more
sandboxes join the measurements into sections; a template makes the report, and the task's workspace keeps it.

    measure-dag ─┐
    measure-db  ─┤   ┌─ section-rooms   ─┐
    …            ├───┼─ section-arrows  ─┼─ report ─ store
    measure-…   ─┘   └─ section-hardest ─┘
"""

from __future__ import annotations

import base64
import importlib.util
import io
import zipfile
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rayloom.cluster.cli.exits import exit_of
from rayloom.cluster.cli.output import Output, printable
from rayloom.cluster.cli.watching import follow, show_end
from rayloom.dag.errors import Bug
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.client import Client

if TYPE_CHECKING:
    from rich.console import Console

ROOMS: Final = ("dag", "db", "tools", "actors", "serve", "cluster")
SECTIONS: Final = ("rooms", "arrows", "hardest")
HEAD_LINES: Final = 28
# Seconds of work at most, on a machine that is busy with other things.
WALL_S: Final = 240
TIMEOUT_S: Final = 300
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def build_request() -> JsonObject:
    """The body of the submission; the same sources give the same bytes."""
    return {
        "title": "rayloom reads its own source code",
        "plan": build_plan(),
        "labels": {"demonstration": "yes"},
    }


def build_plan() -> JsonObject:
    """The plan: a measurement for each room, a sandbox for each section, the report, and its place."""
    measurements = [_measurement(room) for room in ROOMS]
    sections = [_section(section) for section in SECTIONS]
    values: JsonObject = {section: {"$ref": f"section-{section}.output"} for section in SECTIONS}
    values["version"] = metadata.version("rayloom")
    report: JsonObject = {
        "id": "report",
        "name": "Write the report",
        "type": "TOOL",
        "tool": "text.template",
        "input": {"template": _step("report.md"), "values": values},
        "timeout_s": 60,
    }
    store: JsonObject = {
        "id": "store",
        "name": "Keep the report in the workspace",
        "type": "TOOL",
        "tool": "files.write",
        "input": {"path": "report.md", "content": {"$ref": "report.output.text"}},
        "timeout_s": 60,
    }
    return {"subtasks": [*measurements, *sections, report, store]}


def run(url: str, api_key: str, console: Console) -> int:
    """Submit the demonstration, show it finishing, print the report's head; gives 0, 3 (failed) or 4 (cancelled).

    Raises Rejected, Busy or Unreachable when the API does not take it.
    """
    out = Output(as_json=False, console=console)
    with Client(url, api_key, patience_s=60.0) as client:
        submitted = client.submit(build_request())
        out.line(f"demonstration: task {submitted.task_id}")
        task = follow(client, submitted.task_id, out)
        if task.get("status") == "COMPLETED":
            _show_head(client.subtask(submitted.task_id, "report"), submitted.task_id, out)
        else:
            show_end(out, task)
    return exit_of(task.get("status"))


def _measurement(room: str) -> JsonObject:
    return {
        "id": f"measure-{room}",
        "name": f"Measure {room}/",
        "type": "TOOL",
        "tool": "python.run",
        "input": {
            "code": _step("measure.py"),
            "stdin": room,
            "limits": {"wall_s": WALL_S},
            "files": {"sources.zip": {"base64": base64.b64encode(_archive(room)).decode()}},
        },
        "timeout_s": TIMEOUT_S,
    }


def _section(section: str) -> JsonObject:
    files: dict[str, Json] = {f"{room}.json": {"$ref": f"measure-{room}.output.stdout"} for room in ROOMS}
    return {
        "id": f"section-{section}",
        "name": f"Join the measurements: {section}",
        "type": "TOOL",
        "tool": "python.run",
        "input": {
            "code": _step("combine.py"),
            "stdin": section,
            "files": files,
            "limits": {"wall_s": WALL_S},
        },
        "timeout_s": TIMEOUT_S,
    }


def _step(name: str) -> str:
    return resources.files("rayloom.cluster.demo_steps").joinpath(name).read_text(encoding="utf-8")


def _archive(room: str) -> bytes:
    """The room's sources as a zip of ``<room>/<file>``."""
    spec = importlib.util.find_spec(f"rayloom.{room}")
    if spec is None or not spec.submodule_search_locations:
        raise Bug("NO_SOURCES", f"rayloom.{room} is not installed as a package")
    folder = Path(next(iter(spec.submodule_search_locations)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            entry = zipfile.ZipInfo(f"{room}/{path.relative_to(folder).as_posix()}", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


def _show_head(subtask: JsonObject, task_id: str, out: Output) -> None:
    output = subtask.get("output")
    text = output.get("text") if isinstance(output, dict) else None
    if not isinstance(text, str):
        return
    lines = printable(text).splitlines()
    head = "\n".join(lines[:HEAD_LINES])
    if out.rich:
        from rich.markdown import Markdown

        out.console.print(Markdown(head))
    else:
        out.line(head)
    if len(lines) > HEAD_LINES:
        out.line(f"… {len(lines) - HEAD_LINES} more lines, kept as report.md in the workspace of task {task_id}")
