"""From a tool as the registry knows it to the tool that can be run, in the process that runs it."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from rayloom.dag.errors import Refused, UserError
from rayloom.dag.ports import RegisteredTool
from rayloom.tools import entry_points
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.tool import PermissionLevel, Tool

BUILT_IN: Final = "builtin:"


def resolve(registered: RegisteredTool) -> Tool:
    """The tool behind a registered one; found once a process and version.

    Raises Refused (``TOOL_INACTIVE``, ``TOOL_UNSUPPORTED``), and UserError (``TOOL_UNKNOWN`` or those of
    ``entry_points.load``) when this process has no such code.
    """
    if not registered.is_active:
        raise Refused("TOOL_INACTIVE", f"the tool {registered.name} is switched off")
    if registered.type == "SKILL":
        return _skill(registered.name, registered.description, registered.version, registered.permission_level)
    if registered.type != "NATIVE":
        raise Refused("TOOL_UNSUPPORTED", f"{registered.name}: tools of type {registered.type} can't be run yet")
    return _found(registered.endpoint, registered.version)


@lru_cache(maxsize=1024)
def _skill(name: str, description: str, version: str, level: PermissionLevel) -> Tool:
    # Most workers never run one, and need not wait for what it is made of.
    from rayloom.tools.skills.tool import skill_tool

    return skill_tool(name=name, description=description, version=version, level=level)


@lru_cache(maxsize=1024)
def _found(endpoint: str, _version: str) -> Tool:
    if not endpoint.startswith(BUILT_IN):
        return entry_points.load(endpoint)
    name = endpoint.removeprefix(BUILT_IN)
    if name not in BUILTINS:
        raise UserError("TOOL_UNKNOWN", f"this release has no built-in tool {name!r}")
    return BUILTINS[name]
