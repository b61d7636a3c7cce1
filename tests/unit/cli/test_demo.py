"""The demonstration and the examples: plans that hold, steps that do what they say."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from rayloom.cluster.demo import ROOMS, SECTIONS, build_plan, build_request, run
from rayloom.cluster.demo_steps.combine import SECTIONS as WRITERS
from rayloom.cluster.demo_steps.combine import main as combine
from rayloom.cluster.demo_steps.measure import measure
from rayloom.dag.errors import UserError
from rayloom.dag.plan import parse_plan
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.verify import verify
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.builtin.evaluate import render
from tests.unit.cli.api import KEY, FakeApi

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NODE = NodeShape(total={"CPU": 2.0, "sandbox": 2.0, "memory": 4e9}, labels={}, count_max=1)
SOURCE = '''
from rayloom.dag.plan import Plan
import rayloom.db.tasks

def open_door(key):
    """Open it."""
    if key and (key.fits or key.turns):
        return [part for part in key if part]
    return None

class _Hidden:
    def door(self): ...
'''


def _verified(plan: object) -> Any:
    tools = {
        name: ToolView(
            name=name,
            schema=tool.spec.input_schema,
            resources=tool.spec.resources,
            permission_level=tool.spec.permission_level,
            is_active=True,
            lane=tool.spec.lane,
        )
        for name, tool in BUILTINS.items()
    }
    return verify(parse_plan(plan), tools=tools, nodes=[NODE], model_available=True)


def test_the_demonstration_is_a_plan_that_would_be_accepted() -> None:
    verified = _verified(build_plan())
    assert len(verified.subtasks) == len(ROOMS) + len(SECTIONS) + 2
    assert verified.width == len(ROOMS)
    assert verified.sinks == ("store",)
    assert build_request() == build_request()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.json*")))
def test_the_examples_are_plans_that_would_be_accepted(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    documents = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else [json.loads(text)]
    for document in documents:
        _verified(document.get("plan", document))


def test_the_diamond_has_seven_subtasks_and_a_tail() -> None:
    verified = _verified(json.loads((EXAMPLES / "diamond-with-tail.json").read_text()))
    assert (len(verified.subtasks), verified.width, verified.sinks) == (7, 3, ("store",))


def test_a_room_is_measured() -> None:
    measured = measure("dag", {"dag/door.py": SOURCE})
    hardest = measured.pop("hardest")
    assert measured == {
        "room": "dag",
        "files": 1,
        "lines": 12,
        "code_lines": 9,
        "functions": 2,
        "classes": 1,
        "public": 2,
        "documented": 1,
        "mean_ways": 3.5,
        "imports": {"dag": 1, "db": 1},
    }
    assert hardest[0] == {"name": "open_door", "where": "dag/door.py:5", "lines": 5, "ways": 6}


def test_the_sections_are_markdown() -> None:
    measured = [measure("dag", {"dag/door.py": SOURCE}), measure("db", {"db/x.py": "import rayloom.dag.plan\n"})]
    assert set(WRITERS) == set(SECTIONS)
    assert "| **all** | 2 | 13 | 10 | 2 | 1 | 50 % |" in WRITERS["rooms"](measured)
    assert "Against the rules: dag → db." in WRITERS["arrows"](measured)
    assert "Every import runs downwards" in WRITERS["arrows"](measured[1:])
    assert "| `open_door` (dag/door.py:5) | 6 | 5 |" in WRITERS["hardest"](measured)


def test_the_report_fails_with_the_words_of_a_section_that_failed() -> None:
    subtasks: Any = build_plan()["subtasks"]
    template = next(each["input"]["template"] for each in subtasks if each["id"] == "report")
    good = {"stdout": "a table", "stderr": "", "exit_code": 0}
    values: dict[str, Any] = dict.fromkeys(SECTIONS, good)
    assert render(template, {**values, "version": "1"}, max_chars=10_000).count("a table") == len(SECTIONS)
    bad = {"stdout": "", "stderr": "[sandbox] killed", "exit_code": 137}
    with pytest.raises(UserError, match=re.escape("[sandbox] killed")):
        render(template, {**values, "rooms": bad, "version": "1"}, max_chars=10_000)


def test_the_sections_name_the_measurement_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dag.json").write_text(json.dumps(measure("dag", {"dag/door.py": SOURCE})))
    Path("db.json").write_text("")
    with pytest.raises(SystemExit, match="measure-db printed nothing"):
        combine()


def test_the_programs_have_time_on_a_busy_machine() -> None:
    # The default of a program is 30 s, which measuring a room may need where other programs want the CPUs, too.
    programs: Any = [each for each in cast(Any, build_plan()["subtasks"]) if each["tool"] == "python.run"]
    assert len(programs) == len(ROOMS) + len(SECTIONS)
    for each in programs:
        assert 200 < each["input"]["limits"]["wall_s"] < each["timeout_s"]


def test_every_room_travels_with_its_sources() -> None:
    subtasks: Any = build_plan()["subtasks"]
    for room, subtask in zip(ROOMS, subtasks, strict=False):
        packed = base64.b64decode(subtask["input"]["files"]["sources.zip"]["base64"])
        names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
        assert f"{room}/__init__.py" in names


def test_it_is_shown_finishing_and_its_report_is_read_out(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    from fastapi.responses import JSONResponse

    task_id = "00000000-0000-7000-8000-000000000001"
    report = {"id": "report", "output": {"text": "# Report\n" + "line\n" * 40}}
    api.script[f"GET /api/v1/tasks/{task_id}/subtasks/report"].append(JSONResponse(report))
    assert run(api.url, KEY, Console()) == 0
    said = capsys.readouterr().out
    assert f"demonstration: task {task_id}" in said
    assert "PROCESSING -> COMPLETED" in said
    assert "# Report" in said
    assert "13 more lines" in said
