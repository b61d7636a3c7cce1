"""What crosses between the rooms."""

from __future__ import annotations

from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.tool_view import ToolView


def test_a_snapshot_shows_of_a_tool_what_verification_needs() -> None:
    tool = RegisteredTool(
        name="core.noop",
        type="NATIVE",
        description="Does nothing.",
        version="1",
        schema={"type": "object"},
        output_schema=None,
        endpoint="builtin:core.noop",
        config={},
        resources={"CPU": 0.25},
        lane="shared",
        permission_level="read",
        is_active=False,
    )
    assert ToolSnapshot(version=3, tools={tool.name: tool}).views() == {
        "core.noop": ToolView(
            name="core.noop",
            schema={"type": "object"},
            resources={"CPU": 0.25},
            permission_level="read",
            is_active=False,
            lane="shared",
        )
    }
