"""core.*, and what every built-in tool keeps to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.native import AnyJson, ToolInput, native
from rayloom.tools.tool import Tool, ToolContext, ToolResult
from tests.unit.tools.context import make_context


async def run(name: str, input: dict[str, Json], *, attempt: int = 1) -> Any:
    return (await call_tool(BUILTINS[name], input, make_context(attempt=attempt))).output


def test_the_catalogue_is_the_contracts() -> None:
    assert sorted(BUILTINS) == [
        "core.echo",
        "core.fail",
        "core.noop",
        "core.sleep",
        "files.list",
        "files.read",
        "files.write",
        "http.fetch_text",
        "http.request",
        "json.query",
        "python.run",
        "shell.run",
        "sql.query",
        "text.template",
    ]


async def test_a_whole_number_is_an_integer_however_it_is_written() -> None:
    assert await run("core.fail", {"times": 1.0, "kind": "user", "then": 2.0}, attempt=2) == 2.0
    assert await run("core.fail", {"times": 1001, "kind": "user", "then": 2.0}, attempt=1002) == 2.0
    for times in (1.5, -1.0, 1e300):
        with pytest.raises(UserError, match="/times"):
            await run("core.fail", {"times": times, "kind": "user"}, attempt=2)


class _Nested(ToolInput):
    """Integers wherever they may stand."""

    many: list[int]
    named: dict[str, int | None]
    either: int | str
    data: AnyJson


async def test_whole_numbers_are_found_where_they_stand() -> None:
    async def body(input: _Nested, _context: ToolContext) -> ToolResult:
        return ToolResult(output=[*input.many, input.named["a/b"], input.data, input.either])

    tool = native("x.nested", _Nested, body, description="x", permission_level="read")
    given: dict[str, Json] = {"many": [1, 2.0], "named": {"a/b": 3.0}, "either": 5.0, "data": 4.0}
    output = (await call_tool(tool, given, make_context())).output
    assert orjson.dumps(output) == b"[1,2,3,4.0,5]"
    assert given["many"] == [1, 2.0]


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_a_tool_is_well_described(name: str) -> None:
    tool: object = BUILTINS[name]
    assert isinstance(tool, Tool)
    Draft202012Validator.check_schema(tool.spec.input_schema)
    assert tool.spec.input_schema["additionalProperties"] is False
    if tool.spec.output_schema is not None:
        Draft202012Validator.check_schema(tool.spec.output_schema)
    sandboxed = name in ("python.run", "shell.run")
    assert tool.spec.resources == ({"CPU": 1, "sandbox": 1} if sandboxed else {"CPU": 0.25})
    assert tool.spec.lane == ("own" if sandboxed else "shared")


@pytest.mark.parametrize("name", sorted(BUILTINS))
async def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="Additional properties are not allowed"):
        await run(name, {"no_such_field": 1})


async def test_noop_and_sleep_give_null() -> None:
    assert await run("core.noop", {}) is None
    assert await run("core.sleep", {"seconds": 0}) is None


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "ü", [1, [2]], {"a": {"b": None}}])
async def test_echo_gives_the_value_as_it_is(value: Json) -> None:
    given = await run("core.echo", {"value": value})
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize("seconds", [-1, 86_401, "1", None])
async def test_sleep_takes_a_day_at_most(seconds: Json) -> None:
    with pytest.raises(UserError):
        await run("core.sleep", {"seconds": seconds})


async def test_fail_fails_as_often_as_told_and_then_gives_then() -> None:
    drill: dict[str, Json] = {"times": 2, "kind": "transient", "then": {"ok": 1}}
    for attempt in (1, 2):
        with pytest.raises(Transient):
            await run("core.fail", drill, attempt=attempt)
    assert await run("core.fail", drill, attempt=3) == {"ok": 1}


async def test_fail_may_be_the_users() -> None:
    with pytest.raises(UserError, match=r"core\.fail"):
        await run("core.fail", {"times": 1, "kind": "user"})
    assert await run("core.fail", {"times": 0, "kind": "user"}) is None


async def test_fail_may_hang_until_it_is_cancelled() -> None:
    hanging = asyncio.ensure_future(run("core.fail", {"times": 1, "kind": "hang"}))
    done, _ = await asyncio.wait({hanging}, timeout=0.05)
    assert not done
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging


def test_fail_may_kill_its_process() -> None:
    program = (
        "import asyncio\n"
        "from rayloom.tools.builtin.catalogue import BUILTINS\n"
        "from tests.unit.tools.context import make_context\n"
        "asyncio.run(BUILTINS['core.fail'].run({'times': 1, 'kind': 'crash'}, make_context()))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
