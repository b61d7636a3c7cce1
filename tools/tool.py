"""What a tool is: its specification, what it is handed, what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, runtime_checkable

from rayloom.dag.values import Json
from rayloom.tools.ports import ContentsPort, FilesPort, LogPort
from rayloom.tools.settings import ToolSettings

ToolType = Literal["NATIVE", "MCP", "SKILL"]
PermissionLevel = Literal["read", "write", "execute", "admin"]
ToolLane = Literal["own", "shared"]

LIGHT: Final[Mapping[str, float]] = {"CPU": 0.25}
"""What a subtask of an I/O-bound or small tool asks for when its plan says nothing (Ray's resource names)."""
SANDBOXED: Final[Mapping[str, float]] = {"CPU": 1, "sandbox": 1}
"""The same for a tool that starts a sandbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What is known of a tool without running it.

    The schemas are JSON Schema, draft 2020-12. ``lane`` declares ``shared`` for work that mostly waits.
    ``deterministic`` promises that equal inputs give equal outputs, with no side effect: results are kept and serve
    equal calls of the same user, but for an ``instant`` tool, which is faster than a look at what is kept.
    ``shared_cache`` lets the kept result of a ``deterministic`` tool serve all users: only for a tool that an admin
    registers, and whose input never holds data of users. No built-in tool sets it.
    ``uses_workspace``: it reads or writes the files of its task, so no result of it serves another call. ``breaker``:
    its failures speak of something that all its callers share, so they count against its breaker; False for what only
    runs what its caller brings, and for drills.
    """

    name: str
    type: ToolType
    description: str
    version: str
    input_schema: Mapping[str, Json]
    output_schema: Mapping[str, Json] | None = None
    permission_level: PermissionLevel
    resources: Mapping[str, float] = field(default_factory=lambda: dict(LIGHT))
    lane: ToolLane = "shared"
    deterministic: bool = False
    instant: bool = False
    shared_cache: bool = False
    uses_workspace: bool = False
    breaker: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What a call gave: its output, and what it printed on the way."""

    output: Json
    stdout: str = ""
    stderr: str = ""
    tokens_used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """What a call is handed beside its input.

    ``attempt`` counts from 1. ``idempotency_key`` is the same for every attempt of one subtask: a tool passes it on
    where the other side takes one.
    """

    task_id: str
    user_id: str
    subtask: str
    attempt: int
    idempotency_key: str
    settings: ToolSettings
    log: LogPort
    files: FilesPort
    contents: ContentsPort


@runtime_checkable
class Tool(Protocol):
    """Something that a subtask can use."""

    @property
    def spec(self) -> ToolSpec:
        """What is known of the tool without running it."""

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        """Do the work once. ``input`` has passed the tool's schema.

        Raises subclasses of RayloomError. On ``asyncio.CancelledError`` it cleans up (children, connections) and
        lets the error through.
        """
