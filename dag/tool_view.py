"""What must be known of a tool to make a plan that uses it, and to judge one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Lane = Literal["own", "shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolView:
    """What must be known of a tool to make a plan, and to judge one."""

    name: str
    schema: Mapping[str, Any]
    """JSON Schema (draft 2020-12) of its input; valid itself, which registration has checked."""
    resources: Mapping[str, float]
    """What it asks for by default, by Ray's names."""
    permission_level: Literal["read", "write", "execute", "admin"] = "read"
    is_active: bool = True
    lane: Lane = "own"
    description: str = ""
    """For whoever chooses a tool: a person or a model."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema of its output, where its author gave one."""
    type: Literal["NATIVE", "MCP", "SKILL"] = "NATIVE"
