"""A tool as the registry keeps it, and what may be said of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from rayloom.dag.breaker import alternative_fault
from rayloom.dag.errors import UserError
from rayloom.dag.ports import RegisteredTool
from rayloom.tools.tool import Tool

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
NAME_MAX_CHARS: Final = 128
RESERVED: Final = ("skill.",)
_LEVELS: Final = ("read", "write", "execute", "admin")


def describe(name: str, endpoint: str, tool: Tool) -> RegisteredTool:
    """A native tool as the registry keeps it."""
    spec = tool.spec
    return RegisteredTool(
        name=name,
        type=spec.type,
        description=spec.description,
        version=spec.version,
        schema=dict(spec.input_schema),
        output_schema=None if spec.output_schema is None else dict(spec.output_schema),
        endpoint=endpoint,
        config={"breaker_default": spec.breaker},
        resources=dict(spec.resources),
        lane=spec.lane,
        permission_level=spec.permission_level,
        is_active=True,
    )


def check_name(name: str) -> None:
    """Raise UserError (``TOOL_NAME_INVALID``) for what can't be the name of a registered tool."""
    if len(name) > NAME_MAX_CHARS or not NAME.fullmatch(name):
        raise UserError(
            "TOOL_NAME_INVALID",
            f"a tool's name has up to {NAME_MAX_CHARS} letters, digits, '_' and '-', in parts between dots; "
            f"it starts with a letter: {name[:NAME_MAX_CHARS]!r} does not fit",
        )
    if name.startswith(RESERVED):
        raise UserError("TOOL_NAME_INVALID", f"names that start with {RESERVED[0]!r} belong to Skills")


def check_alternative(tool: RegisteredTool, chosen: str, tools: Mapping[str, RegisteredTool]) -> None:
    """Raise UserError (``ALTERNATIVE_INVALID``) where a tool can't stand in for another one."""
    other = tools.get(chosen)
    alternatives = {name: each.alternative for name, each in tools.items() if each.alternative is not None}
    if other is None:
        fault = f"there is no tool {chosen!r}"
    elif _LEVELS.index(other.permission_level) > _LEVELS.index(tool.permission_level):
        fault = f"{chosen} is of the permission level {other.permission_level}, above {tool.permission_level}"
    elif other.breaker_key == tool.breaker_key:
        fault = f"{chosen} has the same breaker"
    else:
        fault = alternative_fault(tool.name, chosen, alternatives) or ""
    if fault:
        raise UserError("ALTERNATIVE_INVALID", fault)
