"""What the faces, the hands and the parser ask of each other across Ray names, and the values that cross.

`serve` and `actors` are neighbours and never import each other: each knows these protocols only, and `cluster`
hands the implementations in. Everything here is a plain value or an async method, so that a Ray actor handle behind
a thin adapter and a plain object in a test are the same thing to a caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from rayloom.dag.breaker import BreakerView, Call, breaker_key
from rayloom.dag.planned import Planned, PlanRequest
from rayloom.dag.resources import NodeShape

# The token controller's port has a file of its own; here is where every port is found.
from rayloom.dag.token_port import AdmissionPort as AdmissionPort
from rayloom.dag.token_port import Ask as Ask
from rayloom.dag.token_port import Finished as Finished
from rayloom.dag.token_port import Held as Held
from rayloom.dag.token_port import Limited as Limited
from rayloom.dag.token_port import Quota as Quota
from rayloom.dag.token_port import TokenPort as TokenPort
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Health as Health
from rayloom.dag.values import JsonObject

PARSER_BROKE: Final = "PARSER_BROKE"
BreakerWish = Literal["closed", "open", "off"]
"""``open``: until it is closed by hand. ``closed``: and it counts from now on. ``off``: closed, and it never opens."""
LONG_POLL_S: Final = 20.0
"""How long `RegistryPort.changed` waits for a change before it answers all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredTool:
    """A tool as the registry knows it.

    ``endpoint`` is ``builtin:<name>``, the name of an entry point, or ``skill:<digest>``.
    """

    name: str
    type: Literal["NATIVE", "MCP", "SKILL"]
    description: str
    version: str
    schema: JsonObject
    output_schema: JsonObject | None
    endpoint: str
    config: JsonObject
    resources: Mapping[str, float]
    lane: Literal["own", "shared"]
    permission_level: Literal["read", "write", "execute", "admin"]
    is_active: bool

    @property
    def has_breaker(self) -> bool:
        """Whether its calls count: as an admin said, else as its author did."""
        return bool(self.config.get("breaker", self.config.get("breaker_default", True)))

    @property
    def breaker_key(self) -> str:
        """Which breaker is its own."""
        return breaker_key(self.name, self.type)

    @property
    def alternative(self) -> str | None:
        """The tool that stands in for it while its breaker is open."""
        name = self.config.get("alternative")
        return name if isinstance(name, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSnapshot:
    """Every registered tool at one version of the registry; a greater version replaces it.

    ``breakers``: those that are not closed, by their keys.
    """

    version: int
    tools: Mapping[str, RegisteredTool]
    breakers: Mapping[str, BreakerView] = field(default_factory=dict)

    def breaker_of(self, name: str) -> BreakerView | None:
        """The breaker of a tool; None while it is closed, or the tool unknown."""
        tool = self.tools.get(name)
        return None if tool is None else self.breakers.get(tool.breaker_key)

    def may_stand_in(self, name: str) -> bool:
        """Whether a tool may be called in place of another: it is known and active, and its breaker closed."""
        tool = self.tools.get(name)
        return tool is not None and tool.is_active and tool.breaker_key not in self.breakers

    def stand_ins(self, name: str) -> Iterator[str]:
        """What may be called in its place while its breaker is not closed: its alternative, that of this, and so on."""
        seen, tool = {name}, self.tools.get(name)
        while tool is not None and tool.alternative is not None and tool.alternative not in seen:
            seen.add(tool.alternative)
            tool = self.tools.get(tool.alternative)
            if tool is not None and self.may_stand_in(tool.name):
                yield tool.name

    def views(self) -> dict[str, ToolView]:
        """What the verification of a plan must know of them."""
        return {
            name: ToolView(
                name=name,
                schema=tool.schema,
                resources=tool.resources,
                permission_level=tool.permission_level,
                is_active=tool.is_active,
                lane=tool.lane,
                description=tool.description,
                output_schema=tool.output_schema,
                type=tool.type,
            )
            for name, tool in self.tools.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a scheduler knows of a QUEUED subtask and of what it asks for. Times in seconds from now.

    ``handed_over``: Ray holds it. ``limit``: what holds it back, and may have room in ``limit_in_s``, where that is
    known. ``is_held``: the last try to start it failed because something was away. ``nodes``: how many live nodes there
    are; ``room``: how many more of its kind they could run now. ``fits``: whether any node that there is or could be
    offers that; where none does it fails in ``gives_up_in_s``.
    """

    handed_over: bool
    limit: str | None
    limit_in_s: float | None
    is_held: bool
    nodes: int
    room: int
    fits: bool
    gives_up_in_s: float | None


class SchedulerPort(Protocol):
    """The scheduler, as the API sees it."""

    async def wake(self) -> None:
        """There is new work; used when Redis can't say so."""

    async def stop(self, attempts: Sequence[tuple[str, int]]) -> None:
        """Stop these running attempts (subtask id, attempt number) whose rows are already CANCELLED."""

    async def nodes(self) -> Sequence[NodeShape]:
        """Every kind of node that the cluster has or could start."""

    async def waiting(self, sub_task_id: str, user_id: str, shape: str) -> Waiting:
        """What it knows of a QUEUED subtask; ``shape`` is the key of its resource shape."""

    async def knows_tools(self, version: int) -> bool:
        """Wait until what it starts is judged by the registry's list of this version or a newer one, for some seconds.

        False: it did not come to know it in time.
        """

    async def health(self) -> Health:
        """Alive, with counts of what it holds."""


class RegistryPort(Protocol):
    """The tool registry, as everybody sees it."""

    async def snapshot(self) -> ToolSnapshot:
        """All tools now."""

    async def changed(self, version: int) -> ToolSnapshot:
        """Wait until the registry is newer than ``version`` (at most ``LONG_POLL_S``) and answer all tools."""

    async def register_native(self, name: str, endpoint: str) -> RegisteredTool:
        """Switch on an installed entry point.

        Raises UserError (``TOOL_EXISTS``, ``TOOL_UNKNOWN``, ``TOOL_NAME_INVALID``, ``TOOL_INVALID``).
        """

    async def register_skill(self, tool: RegisteredTool, contents: Sequence[str]) -> RegisteredTool:
        """Add a Skill whose contents are in the blob store under these names. Raises UserError (``TOOL_EXISTS``)."""

    async def set_active(self, name: str, active: bool) -> RegisteredTool:
        """Switch a tool on or off. Raises UserError (``TOOL_UNKNOWN``)."""

    async def remove(self, name: str) -> None:
        """Remove a tool that is not built in. Raises UserError (``TOOL_UNKNOWN``, ``TOOL_BUILT_IN``)."""

    async def report(self, calls: Sequence[Call]) -> None:
        """How calls of tools went: their breakers open and close by it."""

    async def probe(self, key: str, by: str) -> bool:
        """Let one subtask past a breaker whose time has come, to see whether the callee is back. False: wait."""

    async def set_breaker(self, name: str, state: BreakerWish) -> RegisteredTool:
        """Close or open the breaker of a tool by hand, or switch it off. Raises UserError (``TOOL_UNKNOWN``)."""

    async def set_alternative(self, name: str, alternative: str | None) -> RegisteredTool:
        """What is called in its place while its breaker is open.

        Raises UserError (``TOOL_UNKNOWN``, ``ALTERNATIVE_INVALID``).
        """

    async def health(self) -> Health:
        """Alive, with its version."""


class ParserPort(Protocol):
    """The parser deployment, as the scheduler sees it."""

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan.

        Raises NeedsClarification, UserError when it can't be planned otherwise, and Transient when it was not: with the
        code ``PARSER_BROKE`` when a parser took the prompt and never answered, with any other when there was none to
        take it, or no model to think.
        """
