"""An MCP server as somebody registers it, and what is asked of the process that holds its session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from rayloom.dag.ports import Health
from rayloom.dag.values import Json, JsonObject

McpTransport = Literal["stdio", "http", "sse"]
ServerHealth = Literal["ok", "offline", "unknown"]
ENDPOINT: Final = "mcp:"
"""How the endpoint of a tool begins that a server has: ``mcp:<server>/<its name there>``."""
HIDDEN: Final = "***"
"""What is shown in place of a secret; given back in a change it means: as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """An MCP server. What may be a secret is in no ``repr``.

    ``readable``: folders that a confined command may read. ``timeout_s``: how long one call may take at most.
    ``permission_level``: that of all its tools, in place of what its own hints say.
    """

    name: str
    transport: McpTransport
    command: tuple[str, ...] = ()
    url: str = ""
    trusted: bool = False
    readable: tuple[str, ...] = ()
    timeout_s: float = 300.0
    permission_level: Literal["read", "write", "execute", "admin"] | None = None
    is_active: bool = True
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: JsonObject | None = field(default=None, repr=False)


def is_repeatable(config: JsonObject) -> bool:
    """Whether a tool says that a second call does no harm."""
    hints = config.get("hints")
    return isinstance(hints, dict) and (hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLine:
    """A line that a server said while a call ran: a log message or its progress."""

    message: str
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    fields: Mapping[str, Json] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class McpCall:
    """One call of a server's tool, by the name that it has there. ``id`` is nobody else's.

    ``idempotency_key`` goes with it as ``_meta``: the same for each attempt of one subtask.
    """

    id: str
    server: str
    tool: str
    arguments: JsonObject
    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class McpAnswer:
    """What a call gave, and all that was said meanwhile."""

    output: Json
    lines: Sequence[CallLine] = ()


class McpPort(Protocol):
    """The host of the sessions of MCP servers, as the API sees it."""

    async def register(self, server: McpServer) -> Sequence[str]:
        """Connect to a server and add its tools; answers their names.

        Raises UserError (``TOOL_EXISTS``, ``TOOL_NAME_INVALID``, ``MCP_UNREACHABLE``, ``MCP_SCHEMA_INVALID``).
        """

    async def show(self, name: str) -> JsonObject:
        """A server without its secrets. Raises UserError (``TOOL_UNKNOWN``)."""

    async def change(self, name: str, changes: JsonObject) -> JsonObject:
        """Change ``is_active``, ``env``, ``headers``, ``auth`` or ``timeout_s``; answers what ``show`` answers.

        In ``env`` and ``headers`` null removes an entry; those that are not named stay. Raises UserError
        (``TOOL_UNKNOWN``).
        """

    async def remove(self, name: str) -> None:
        """Remove a server and all its tools. Raises UserError (``TOOL_UNKNOWN``)."""

    async def health(self) -> Health:
        """Alive, with counts of what it holds."""
