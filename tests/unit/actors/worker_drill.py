"""A worker process that is stopped and blocked; `test_worker` runs it and reads what it says. Knows no Ray."""

from __future__ import annotations

import _thread
import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import SecretStr

from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.actors.worker import Worker
from rayloom.dag.values import Json
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings
from rayloom.tools.tool import Tool, ToolContext, ToolResult
from tests.unit.actors.test_attempt import ScriptedTool

Run = Callable[[dict[str, Json], ToolContext], Awaitable[ToolResult]]
cleaned: list[str] = []
begun: list[object] = []


class SlowStore:
    """Keeps what it is given after a while."""

    async def keep(self, data: bytes) -> str:
        """As `WorkerRecords`."""
        await asyncio.sleep(3)
        return f"{len(data)}"


class DrilledWorker(Worker):
    """A worker whose only tool is the test's."""

    do: Run

    async def tool(self, name: str, registry_version: int) -> Tool:
        """The tool of the moment."""
        return ScriptedTool(self.do)

    def _records(self) -> Any:
        return SlowStore()


def _soon_interrupted(after_s: float = 0.05) -> None:
    threading.Timer(after_s, _thread.interrupt_main).start()


async def quick(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Ends at once."""
    return ToolResult(output="quick")


async def waiting(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Waits in the loop until it is stopped, and cleans up."""
    _soon_interrupted()
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.01)
        cleaned.append("waiting")
    raise AssertionError


async def deaf(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Is asked to stop, and blocks the loop in place of cleaning up."""
    _soon_interrupted()
    try:
        await asyncio.Event().wait()
    finally:
        threading.Event().wait()
    raise AssertionError


async def blocking(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Blocks the loop from the start."""
    threading.Event().wait()
    raise AssertionError


async def interrupted_at_the_end(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Is stopped in the very moment in which it ends."""
    _thread.interrupt_main()
    return ToolResult(output="just in time")


async def keeping_large(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Is done in time, and what it made is kept after it."""
    return ToolResult(output="x" * 70_000)


async def leaving_something(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    """Ends, and what it began goes on."""
    begun.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))
    return ToolResult(output="left")


TOOLS: dict[str, Run] = {
    tool.__name__: tool
    for tool in (quick, waiting, deaf, blocking, interrupted_at_the_end, leaving_something, keeping_large)
}


def main() -> None:
    """Run the named tools one after another in one worker."""
    settings = WorkerSettings(
        engine=EngineSettings(stop_grace_s=2.0, timeout_grace_s=0.2),
        database=DatabaseSettings(url=SecretStr("")),
        redis=RedisSettings(url=SecretStr("")),
        tools=ToolSettings(),
    )
    worker = DrilledWorker(settings, worker_id="w", node_id="n")
    told: list[dict[str, Any]] = []
    for name in sys.argv[1:]:
        worker.do = TOOLS[name]
        order = AttemptOrder(
            sub_task_id="s", task_id="t", user_id="u", key="k", tool="t", registry_version=0, attempt=1,
            timeout_s={"blocking": 0.3, "keeping_large": 2.0}.get(name, 60.0),
            input="{}", referred=(), running=True, handed_at=0.0,
        )  # fmt: skip
        outcome = worker.run(order, ray_task_id="r")
        told.append(
            {
                "tool": name,
                "verdict": outcome.verdict,
                "output": outcome.output or outcome.output_blob,
                "by": [outcome.worker_id, outcome.node_id, outcome.ray_task_id],
            }
        )
    worker.close()
    left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    sys.stdout.write(json.dumps({"told": told, "cleaned": cleaned, "left": left}))


if __name__ == "__main__":
    main()
