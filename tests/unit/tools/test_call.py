"""A call checks what goes in and what comes out, and names what went wrong in between."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rayloom.dag.errors import Bug, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.call import call_tool, schema_faults
from rayloom.tools.tool import Tool, ToolContext, ToolResult, ToolSpec
from tests.unit.tools.context import make_context

SPEC = ToolSpec(
    name="x.y",
    type="NATIVE",
    description="",
    version="1",
    input_schema={
        "type": "object",
        "properties": {"a/b": {"type": "array", "items": {"type": "integer"}}},
        "required": ["a/b"],
    },
    output_schema={"type": "integer"},
    permission_level="read",
)
GOOD: dict[str, Json] = {"a/b": [1]}


@dataclass
class Told:
    """Does what it is told: raises an exception, returns anything else."""

    does: Any
    spec: ToolSpec = SPEC

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        if isinstance(self.does, BaseException):
            raise self.does
        result: ToolResult = self.does
        return result


async def test_a_good_call_gives_the_result() -> None:
    result = ToolResult(output=1, stdout="said")
    assert await call_tool(Told(result), GOOD, make_context()) is result


async def test_a_bad_input_is_the_users_with_a_pointer_for_every_fault() -> None:
    with pytest.raises(UserError) as error:
        await call_tool(Told(ToolResult(output=1)), {"a/b": ["x", 1, None]}, make_context())
    assert error.value.code == "INPUT_INVALID"
    assert "/a~1b/0: 'x' is not of type 'integer'" in error.value.message
    assert "/a~1b/2: None is not" in error.value.message


async def test_an_input_that_is_no_object_is_refused() -> None:
    with pytest.raises(UserError, match="must be an object"):
        await call_tool(Told(None, replace(SPEC, input_schema={})), [1], make_context())


async def test_a_foreign_exception_is_a_bug_of_the_tool() -> None:
    with pytest.raises(Bug) as error:
        await call_tool(Told(ZeroDivisionError("oops")), GOOD, make_context())
    assert (error.value.code, error.value.message) == ("TOOL_CRASHED", "x.y raised ZeroDivisionError: oops")


async def test_our_own_errors_and_cancellation_pass_through() -> None:
    transient = Transient("T", "t", retry_after_s=1)
    with pytest.raises(Transient) as error:
        await call_tool(Told(transient), GOOD, make_context())
    assert error.value is transient
    with pytest.raises(asyncio.CancelledError):
        await call_tool(Told(asyncio.CancelledError()), GOOD, make_context())


@pytest.mark.parametrize("given", [ToolResult(output="x"), 5, None])
async def test_an_output_that_breaks_the_promise_is_a_bug(given: object) -> None:
    with pytest.raises(Bug) as error:
        await call_tool(Told(given), GOOD, make_context())
    assert error.value.code == "TOOL_OUTPUT_INVALID"


async def test_a_schema_that_is_none_is_a_bug() -> None:
    tool: Tool = Told(ToolResult(output=1), replace(SPEC, input_schema={"type": "nonsense"}))
    with pytest.raises(Bug) as error:
        await call_tool(tool, GOOD, make_context())
    assert error.value.code == "TOOL_SCHEMA_INVALID"


def test_a_reference_to_an_address_is_never_fetched() -> None:
    with pytest.raises(Bug) as error:
        schema_faults({"$ref": "http://127.0.0.1:1/schema.json"}, 1, of="x.y")
    assert error.value.code == "TOOL_SCHEMA_INVALID"


def test_faults_are_capped() -> None:
    assert len(schema_faults({"items": {"type": "null"}}, [1] * 100, of="x")) == 10


_DEEP: dict[str, Any] = {
    "properties": {"c": {"allOf": [{"anyOf": [{"oneOf": [{"$ref": "#/$defs/a"}]}]}]}},
    "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#"}]}},
}


@pytest.mark.parametrize(
    ("levels", "spec", "code"),
    [
        (64, replace(SPEC, input_schema=_DEEP), "INPUT_INVALID"),
        (200, replace(SPEC, input_schema={}, output_schema=_DEEP), "OUTPUT_TOO_DEEP"),
    ],
)
async def test_what_nests_too_deeply_to_be_checked_is_no_bug(levels: int, spec: ToolSpec, code: str) -> None:
    value: Json = {}
    for _ in range(levels - 1):
        value = {"c": value}
    with pytest.raises(UserError, match="nest too deeply together") as error:
        await call_tool(Told(ToolResult(output=value), spec), value, make_context())
    assert error.value.code == code
