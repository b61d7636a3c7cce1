"""What python.run and shell.run give of a run, whatever a program printed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from rayloom.dag.output import sanitise
from rayloom.tools.builtin import code
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox.sandbox import OutFile, RunResult, RunSpec
from rayloom.tools.settings import SandboxLimits, ToolSettings
from tests.unit.tools.context import make_context

OUTPUT_MAX_BYTES = 64 * 1024 * 1024


async def _ran(result: RunResult, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    class Sandbox:
        async def run(self, _spec: RunSpec) -> RunResult:
            return result

    monkeypatch.setattr(code, "sandbox_for", lambda *_: Sandbox())
    return (await call_tool(BUILTINS["shell.run"], {"command": "true"}, make_context(**settings))).output


def _result(stdout: str, stderr: str = "", **files: bytes) -> RunResult:
    kept = {path: OutFile(data=data, media_type="application/octet-stream") for path, data in files.items()}
    return RunResult(
        exit_code=0,
        stdout=stdout,
        stderr=stderr,
        truncated=False,
        timed_out=False,
        oom=False,
        duration_ms=0,
        backend="",
        files=kept,
    )


async def test_all_that_the_caps_let_a_program_leave_fits_into_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    caps = ToolSettings()
    chars = caps.sandbox_caps.output_kb * 1024
    result = _result("\x1b" * chars, "\ufffd" * chars, a=bytes(caps.sandbox_files_max_bytes))
    output = await _ran(result, monkeypatch)
    assert output["truncated"]
    assert len(orjson.dumps(sanitise(output))) <= OUTPUT_MAX_BYTES


@pytest.mark.parametrize(
    ("printed", "kept"),
    [
        ("a" * 1_024, "a" * 1_024),
        ("a" * 100_000, "a" * 1_152),
        ("\x1b" * 192, "\x1b" * 192),
        ("\x1b" * 193, "\x1b" * 192),
        ("ü\n" * 512, "ü\n" * 288),
    ],
)
async def test_as_much_is_kept_as_has_the_size_in_json(
    printed: str, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = await _ran(_result(printed, printed), monkeypatch, sandbox_caps=SandboxLimits(output_kb=1))
    assert (output["stdout"], output["stderr"]) == (kept, kept)
    assert output["truncated"] == (printed != kept)


async def test_a_long_text_is_measured_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = "\x1b" * 100 + "a" * 200_000
    output = await _ran(_result(printed), monkeypatch, sandbox_caps=SandboxLimits(output_kb=100))
    assert output["stdout"] == printed[: 100 * 1_152 - 500]
