"""Tools of third parties are loaded by the name of their entry point, and looked at before they are believed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.dag.errors import UserError
from rayloom.tools.call import call_tool
from rayloom.tools.entry_points import available, load
from tests.unit.tools.context import make_context

MODULE = """
from rayloom.tools.native import ToolInput, native
from rayloom.tools.tool import ToolResult

class Input(ToolInput):
    n: int

async def body(input, context):
    return ToolResult(output=input.n + 1)

def make():
    return native("their.plus", Input, body, description="n + 1", permission_level="read")

instance = make()

class NoSpec:
    async def run(self, input, context): ...

class OddSpec:
    spec = {"name": "x"}
    async def run(self, input, context): ...

def breaks():
    raise RuntimeError("not today")
"""

POINTS = """[rayloom.tools]
instance = third_party_tool_for_tests:instance
factory = third_party_tool_for_tests:make
no_spec = third_party_tool_for_tests:NoSpec
odd_spec = third_party_tool_for_tests:OddSpec
breaks = third_party_tool_for_tests:breaks
missing = third_party_tool_for_tests:nothing
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "third_party_tool_for_tests.py").write_text(MODULE)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("third_party_tool_for_tests", None)


@pytest.mark.parametrize("endpoint", ["instance", "factory"])
async def test_a_tool_is_loaded_and_called(endpoint: str) -> None:
    tool = load(endpoint)
    assert tool.spec.name == "their.plus"
    assert (await call_tool(tool, {"n": 1}, make_context())).output == 2


@pytest.mark.parametrize("endpoint", ["no_spec", "odd_spec", "breaks", "missing"])
def test_what_is_no_tool_is_refused(endpoint: str) -> None:
    with pytest.raises(UserError) as error:
        load(endpoint)
    assert error.value.code == "ENDPOINT_INVALID"


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="instance") as error:
        load("nobody")
    assert error.value.code == "ENDPOINT_UNKNOWN"
    assert "factory" in available()
