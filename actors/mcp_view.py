"""A registered MCP server as an admin sees and changes it: without what may be a secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from rayloom.dag.errors import UserError
from rayloom.dag.mcp import HIDDEN, McpServer
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.addresses import parse_url
from rayloom.tools.mcp.session import Session

_OPEN_AUTH: Final = ("type", "scope", "issuer", "algorithm")


def shown(server: McpServer, session: Session | None, tools: Sequence[str]) -> JsonObject:
    """A server with its session's state; the names of what it was given, and no values."""
    auth = server.auth
    return {
        "name": server.name,
        "type": "MCP",
        "transport": server.transport,
        "command": list(server.command) or None,
        "url": parse_url(server.url).shown if server.url else None,
        "trusted": server.trusted,
        "readable": list(server.readable),
        "timeout_s": server.timeout_s,
        "permission_level": server.permission_level,
        "env": dict.fromkeys(server.env, HIDDEN),
        "headers": dict.fromkeys(server.headers, HIDDEN),
        "auth": None if auth is None else {name: auth[name] if name in _OPEN_AUTH else HIDDEN for name in auth},
        "is_active": server.is_active,
        "health": "unknown" if session is None else session.health,
        "protocol": session.protocol or None if session is not None else None,
        "error": session.last_error or None if session is not None else None,
        "tools": list(tools),
    }


def changed(server: McpServer, changes: JsonObject) -> McpServer:
    """A server with changes. Raises UserError (``MCP_INVALID``) for what is no change of a server."""
    new: dict[str, Any] = {}
    for name, value in changes.items():
        if name in ("env", "headers"):
            assert isinstance(value, dict)
            new[name] = _merged(getattr(server, name), value)
        elif name == "auth" and isinstance(value, dict):
            old = server.auth or {}
            new[name] = {field: old.get(field) if given == HIDDEN else given for field, given in value.items()}
        elif name in ("is_active", "timeout_s", "auth"):
            new[name] = value
        else:
            raise UserError("MCP_INVALID", f"{name} can't be changed: remove the server and register it again")
    return replace(server, **new)


def _merged(old: Mapping[str, str], changes: Mapping[str, Json]) -> dict[str, str]:
    merged = {**old, **{name: str(value) for name, value in changes.items() if value not in (None, HIDDEN)}}
    return {name: value for name, value in merged.items() if name not in changes or changes[name] is not None}
