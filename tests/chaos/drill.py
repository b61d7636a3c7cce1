"""`drill.step`: a tool of a third party whose every call leaves a mark outside, in a ledger that nothing kills.

The run puts a copy of this file beside its ledger, as a package of its own with an entry point.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated, Final, Literal

import orjson
from pydantic import Field

from rayloom.dag.errors import Transient, UserError
from rayloom.tools.native import ToolInput, native
from rayloom.tools.tool import ToolContext, ToolResult

MODULUS: Final = 1_000_000_007
LEDGER: Final = Path(__file__).with_name("ledger.jsonl")


class StepInput(ToolInput):
    """What to add up (null counts 0), how long to take, and how many attempts fail, and how."""

    weight: int
    values: list[int | None]
    seconds: Annotated[float, Field(ge=0, le=60)] = 0.0
    fails: Annotated[int, Field(ge=0)] = 0
    kind: Literal["transient", "user"] = "transient"


def mark(sub_task_id: str, attempt: int) -> None:
    """One line, in one write: lines of several processes don't mix, and one that is written outlives its writer."""
    line = orjson.dumps({"sub_task_id": sub_task_id, "attempt": attempt, "at": time.time(), "pid": os.getpid()})
    ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, line + b"\n")
    finally:
        os.close(ledger)


async def _step(input: StepInput, context: ToolContext) -> ToolResult:
    mark(context.idempotency_key, context.attempt)
    await asyncio.sleep(input.seconds)
    if context.attempt <= input.fails:
        error = UserError if input.kind == "user" else Transient
        raise error("DRILL", f"attempt {context.attempt} of {input.fails} that fail")
    return ToolResult(output={"value": (input.weight + sum(value or 0 for value in input.values)) % MODULUS})


STEP = native("drill.step", StepInput, _step, description="Adds up, and leaves a mark.", permission_level="write")
