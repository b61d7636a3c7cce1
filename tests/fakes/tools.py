"""Tools as the registry knows them, of which nothing matters but their names and their breakers."""

from __future__ import annotations

from typing import Any

from rayloom.dag.ports import RegisteredTool


def tool(name: str, *, is_active: bool = True, **config: Any) -> RegisteredTool:
    """A native tool. ``config``: what an admin said of it."""
    return RegisteredTool(
        name=name, type="NATIVE", description="", version="1", schema={}, output_schema=None, endpoint=name,
        config=config, resources={}, lane="own", permission_level="read", is_active=is_active,
    )  # fmt: skip
