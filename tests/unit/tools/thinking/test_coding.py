"""CODE_GEN by a model, with a sandbox that does what the test says; real ones are for `tests/integration`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.code import RunInput
from rayloom.tools.call import checked
from rayloom.tools.thinking import coding
from rayloom.tools.thinking.coding import Coding
from rayloom.tools.tool import ToolContext, ToolResult
from tests.fakes.scripted_models import Answer, ScriptedModels
from tests.unit.tools.context import KeptLog, make_context
from tests.unit.tools.thinking.thinkers import thinking


def program(code: str) -> str:
    return f"```python\n{code}\n```"


def ran(stdout: str = "", stderr: str = "", *, result: Json = None, **more: Any) -> ToolResult:
    kept: dict[str, Json] = {}
    if result is not None:
        kept["result.json"] = {"base64": base64.b64encode(orjson.dumps(result)).decode(), "size": 1, "media_type": ""}
    output: dict[str, Json] = {
        "exit_code": 0, "stdout": stdout, "stderr": stderr, "truncated": False, "timed_out": False, "oom": False,
        "duration_ms": 1, "backend": "none", "files": kept, **more,
    }  # fmt: skip
    return ToolResult(output=output, stdout=stdout, stderr=stderr)


class Box:
    """In place of the sandbox. ``runs``: (code, files beside it, input) of each run."""

    def __init__(self, *results: ToolResult) -> None:
        self.results = list(results)
        self.runs: list[tuple[str, Mapping[str, bytes], RunInput]] = []

    async def __call__(
        self, _program: str, source: str, input: RunInput, _context: ToolContext, *, beside: Mapping[str, bytes]
    ) -> ToolResult:
        self.runs.append((source, beside, input))
        return self.results[len(self.runs) - 1]


async def write(
    monkeypatch: pytest.MonkeyPatch, box: Box, answers: list[Answer], log: KeptLog | None = None, **input_: Json
) -> tuple[dict[str, Any], ScriptedModels]:
    monkeypatch.setattr(coding, "run_source", box)
    models = ScriptedModels(answers)
    made = Coding(thinking(models, instruction="Add them."))
    result = await made.run(checked(made, input_), make_context(log=log))
    assert isinstance(result.output, dict)
    return result.output, models


async def test_the_program_gets_its_data_as_a_file_and_gives_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    box, log = Box(ran("noise", result=3)), KeptLog()
    output, models = await write(
        monkeypatch, box, [program("x")], log, numbers=[1, 2], files={"a.txt": "hi"}, stdin="s"
    )
    assert (output["result"], output["code"], output["repairs"]) == (3, "x\n", 0)
    assert output["files"] == {}
    assert output["attempts"] == [{"code": "x\n", "exit_code": 0, "fault": "", "stderr": ""}]
    ((code, beside, run),) = box.runs
    assert (code, beside) == ("x\n", {"input.json": b'{"numbers":[1,2]}'})
    assert (run.files, run.stdin) == ({"a.txt": "hi"}, "s")
    (request,) = models.asked
    assert (request.role, request.purpose) == ("coder", "code")
    assert "INSTRUCTION:\nAdd them." in request.messages[1].text
    assert 'input.json holds:\n{"numbers":[1,2]}' in request.messages[1].text
    assert "a.txt" in request.messages[1].text
    assert "without network" in request.messages[0].text


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (ran("half", "Traceback: boom", exit_code=1), "exit code 1\nstderr, its end:\nTraceback: boom\nstdout"),
        (ran(timed_out=True, exit_code=None), "it ran out of time"),
        (ran(oom=True, exit_code=137), "it ran out of memory"),
        (ran(), "it gave no result"),
        (ran('"three"'), "the result does not fit the schema: /: 'three' is not of type 'integer'"),
    ],
)
async def test_what_goes_wrong_goes_back(monkeypatch: pytest.MonkeyPatch, first: ToolResult, said: str) -> None:
    box = Box(first, ran("3"))
    schema: Json = {"type": "integer"}
    output, models = await write(monkeypatch, box, [program("bad"), program("good")], output_schema=schema)
    assert (output["result"], output["code"], output["repairs"]) == (3, "good\n", 1)
    assert [each["code"] for each in output["attempts"]] == ["bad\n", "good\n"]
    second = models.asked[1]
    assert second.purpose == "mend"
    assert second.messages[-2].text == "```python\nbad\n\n```"
    assert said in second.messages[-1].text


async def test_what_is_no_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(ran("1"))
    output, models = await write(monkeypatch, box, [program("for"), program("good")])
    assert output["repairs"] == 1
    assert output["attempts"][0]["exit_code"] is None
    assert len(box.runs) == 1
    assert "it is no Python: line 1" in models.asked[1].messages[-1].text


async def test_repairs_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for repairs, most in (({}, 3), ({"max_repairs": 0}, 1)):
        box, log = Box(*[ran(stderr="boom", exit_code=1)] * 9), KeptLog()
        answers: list[Answer] = [program("bad")] * 9
        given: dict[str, Json] = dict(repairs)
        with pytest.raises(UserError) as failed:
            await write(monkeypatch, box, answers, log, **given)
        assert failed.value.code == "CODE_FAILED"
        assert len(box.runs) == most
        assert sum("code: asked" in line or "mend: asked" in line for _, line in log.lines) == most


async def test_much_data_is_shown_in_part_and_is_whole_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(ran("1"))
    text = "word " * 50_000
    _, models = await write(monkeypatch, box, [program("x")], data=text)
    assert models.count(models.asked[0].messages[1].text) < 2_000
    assert "more characters are left out here" in models.asked[0].messages[1].text
    assert orjson.loads(box.runs[0][1]["input.json"]) == {"data": text}


async def test_what_the_sandbox_is_asked_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(ran("1"))
    network: Json = {"allow": ["example.org:443"]}
    _, models = await write(monkeypatch, box, [program("x")], packages=["numpy"], network=network)
    assert "library and numpy and network only to ['example.org:443']" in models.asked[0].messages[0].text
    assert box.runs[0][2].packages == ["numpy"]


async def test_the_request_that_it_is_a_step_of_is_background(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(ran("3"))
    whole = "Add 1 and 2, and tell a joke."
    _, models = await write(monkeypatch, box, [program("x")], whole_request=whole)
    (request,) = models.asked
    system, said = request.messages
    assert said.text.startswith("BACKGROUND")
    assert whole in said.text
    assert said.text.endswith("YOUR STEP, and nothing beside it:\nINSTRUCTION:\nAdd them.")
    assert "Example." in system.text
    assert "It has no input" in system.text
    # It is no data of the program.
    assert box.runs[0][1] == {"input.json": b"{}"}
    alone, _ = (await write(monkeypatch, Box(ran("3")), [program("x")], numbers=[1]))[1].asked[0].messages
    assert "Example." not in alone.text
    assert "read it from there" in alone.text
