"""core.*: the smallest tools, for joining, waiting and drills."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated, Final, Literal

from pydantic import Field

from rayloom.dag.errors import Bug, Transient, UserError
from rayloom.tools.native import AnyJson, ToolInput, native
from rayloom.tools.tool import ToolContext, ToolResult

MAX_SLEEP_S: Final = 86_400.0


class NoopInput(ToolInput):
    """Nothing."""


class EchoInput(ToolInput):
    """A value to give back."""

    value: AnyJson


class SleepInput(ToolInput):
    """How long to wait."""

    seconds: Annotated[float, Field(ge=0, le=MAX_SLEEP_S)]


class FailInput(ToolInput):
    """How many attempts fail, how, and what comes then."""

    times: Annotated[int, Field(ge=0)]
    kind: Literal["transient", "user", "crash", "hang"]
    then: AnyJson = None


async def _noop(_input: NoopInput, _context: ToolContext) -> ToolResult:
    return ToolResult(output=None)


async def _echo(input: EchoInput, _context: ToolContext) -> ToolResult:
    return ToolResult(output=input.value)


async def _sleep(input: SleepInput, _context: ToolContext) -> ToolResult:
    await asyncio.sleep(input.seconds)
    return ToolResult(output=None)


async def _fail(input: FailInput, context: ToolContext) -> ToolResult:
    if context.attempt > input.times:
        return ToolResult(output=input.then)
    message = f"core.fail: attempt {context.attempt} of {input.times} that fail"
    match input.kind:
        case "transient":
            raise Transient("DRILL_TRANSIENT", message)
        case "user":
            raise UserError("DRILL_USER", message)
        case "crash":
            # SIGKILL can't be caught: the worker dies as it would under the kernel's out-of-memory killer.
            os.kill(os.getpid(), signal.SIGKILL)
            raise Bug("DRILL_SURVIVED", "this process outlived its own SIGKILL")
        case "hang":
            await asyncio.Event().wait()
            raise Bug("DRILL_WOKE", "an event that nobody sets was set")


NOOP = native(
    "core.noop",
    NoopInput,
    _noop,
    description="Does nothing; joins branches.",
    permission_level="read",
    output_schema={"type": "null"},
    deterministic=True,
    instant=True,
    breaker=False,
)
ECHO = native(
    "core.echo",
    EchoInput,
    _echo,
    description="Gives back `value`: {value} -> value.",
    permission_level="read",
    deterministic=True,
    instant=True,
    breaker=False,
)
SLEEP = native(
    "core.sleep",
    SleepInput,
    _sleep,
    description="Waits `seconds` (at most a day), then gives null.",
    permission_level="read",
    output_schema={"type": "null"},
    breaker=False,
)
FAIL = native(
    "core.fail",
    FailInput,
    _fail,
    description="For drills: fails the first `times` attempts (transient, user, crash = the worker process is killed, "
    "hang = never returns), then gives `then`.",
    permission_level="execute",
    breaker=False,
)
