"""What the command line prints of data can neither steer a terminal nor hide in it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from rich.console import Console

from rayloom.cluster.cli.output import Output, json_text, one_line, printable
from rayloom.cluster.cli.progress import WatchedTask
from rayloom.cluster.cli.tree import TaskPicture
from tests.unit.cli.api import FakeApi, problem

Capture = pytest.CaptureFixture[str]
Rayloom = Callable[..., int]

BAD = "a\x1b[31mb\u202ec\u2066d\u200be\u200ff\ufeffg\u00adh\x9bi\x7fj\U000e0041k\u2028l"
SHOWN = "a\\x1b[31mb\\u202ec\\u2066d\\u200be\\u200ff\\ufeffg\\xadh\\x9bi\\x7fj\\U000e0041k\\u2028l"
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
# Joined emoji, one with a selector between, a heart, a key cap, a skin tone.
EMOJI = "\U0001f469\u200d\U0001f4bb \U0001f3f3\ufe0f\u200d\U0001f308 \u2764\ufe0f 1\ufe0f\u20e3 \U0001f44d\U0001f3fd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (BAD, SHOWN),
        ("tab\tand\nline", "tab\tand\nline"),
        ("Windows\r\nline", "Windows\nline"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\ud800", "\\ud800"),
        ("caf\u00e9 \u4e2d\u6587 \u2014 \u201cq\u201d \u2026", "caf\u00e9 \u4e2d\u6587 \u2014 \u201cq\u201d \u2026"),
        (EMOJI, EMOJI),
        ("\u845b\U000e0100", "\u845b\U000e0100"),
        ("pass\u200dword", "pass\\u200dword"),
        ("\U0001f469\u200d", "\U0001f469\\u200d"),
        ("a\ufe0f\ufe01\ufe02", "a\ufe0f\\ufe01\\ufe02"),
        ("\ufe0fa \ufe0f", "\\ufe0fa \\ufe0f"),
        ("fill\u3164er\u115f", "fill\\u3164er\\u115f"),
    ],
)  # fmt: skip
def test_printable_escapes_what_steers_or_hides(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert one_line(text) == " ".join(shown.split())


def test_json_is_the_same_document_with_escapes() -> None:
    document = {BAD: [BAD, "\U0001f469\u200d\U0001f4bb"], "\r\n": "\t"}
    for indent in (False, True):
        text = json_text(document, indent=indent)
        assert json.loads(text) == document
        assert not HIDDEN.search(text.replace("\u200d", ""))


def test_terminal_shows_data_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    out = Output(as_json=False, console=Console(file=screen, force_terminal=True, no_color=True, width=400))
    out.table(["name"], [[BAD]])
    rows: Any = [{"id": "i", "name": BAD, "tool": BAD, "status": "BLOCKED", "error": {"message": BAD}}]
    task = WatchedTask(task_id="t")
    task.load({"title": BAD, "status": "FAILED", "subtasks": rows})
    out.console.print(TaskPicture(task))
    assert screen.getvalue().count(SHOWN) == 5
    assert not HIDDEN.search(re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()))


TASK = "00000000-0000-7000-8000-000000000001"
LETTER: dict[str, Any] = {
    "id": "l1", "task_id": TASK, "subtask": BAD, "tool": BAD, "fingerprint": "f", "attempts": 1, "status": "open",
    "error": {"code": "C", "message": BAD}, "input": {BAD: BAD},
}  # fmt: skip
SPAN = {"span_id": "1", "kind": "tool", "name": BAD, "started_at": "2026-01-01T00:00:00Z", "duration_ms": 1, "ok": True}
TOOL = {"name": BAD, "type": "NATIVE", "description": BAD, "status": "active"}
PLAN = {
    "plan": {"subtasks": [{"id": BAD, "tool": BAD, "name": BAD, "instruction": BAD, "depends_on": [BAD]}]},
    "brief": {BAD: [BAD], "intent": BAD}, "warnings": [BAD], "critical_path": [BAD],
}  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("arguments", "call", "answer"),
    [
        (("list",), "", None),
        (("show", TASK), "", None),
        (("watch", TASK), "", None),
        (("logs", TASK), "", None),
        (("trace", TASK), f"GET /api/v1/tasks/{TASK}/trace", {"trace_id": BAD, "spans": [SPAN]}),
        (("tools",), "GET /api/v1/tools", {"items": [TOOL], "next_cursor": None}),
        (("dead-letters",), "GET /api/v1/dead-letters", {"items": [LETTER], "next_cursor": None}),
        (("dead-letters", "show", "l1"), "GET /api/v1/dead-letters/l1", {**LETTER, "attempts": []}),
        (("plan", "do"), "POST /api/v1/plans", PLAN),
    ],
)
def test_commands_print_no_hidden_character(
    rayloom: Rayloom, api: FakeApi, capsys: Capture, arguments: tuple[str, ...], call: str, answer: Any, as_json: bool
) -> None:
    api.add({"title": BAD, "prompt": BAD})
    task = api.tasks[TASK]
    task.details["subtasks"][0] |= {"name": BAD, "tool": BAD, "error": {"code": BAD, "message": BAD}}
    task.events[-1]["data"]["reason"] = BAD
    api.log.append({"id": 1, "at": "2026-01-01T00:00:00.5Z", "level": "INFO", "stream": "stdout", "message": BAD})
    if call:
        api.script[call].append(JSONResponse(answer))
    assert rayloom(*arguments, *(["--json"] if as_json else [])) == 0
    said = "".join(capsys.readouterr())
    assert not HIDDEN.search(said)
    assert "\\u202e" in said
    assert as_json or "\\x1b" in said


def test_errors_print_no_hidden_character(rayloom: Rayloom, api: FakeApi, capsys: Capture) -> None:
    faults = [{"pointer": f"/{BAD}", "message": BAD}]
    api.script[f"GET /api/v1/tasks/{TASK}"].append(problem(422, BAD, errors=faults))
    assert rayloom("show", TASK) == 1
    said = capsys.readouterr().err
    assert said.count(SHOWN) == 3
    assert not HIDDEN.search(said)
