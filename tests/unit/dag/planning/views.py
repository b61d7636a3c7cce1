"""Tools for plans in tests."""

from __future__ import annotations

from typing import Any

from rayloom.dag.tool_scope import Level
from rayloom.dag.tool_view import ToolView


def view(name: str, properties: dict[str, Any], *required: str, level: Level = "write", about: str = "") -> ToolView:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return ToolView(name=name, schema=schema, resources={}, permission_level=level, description=about)


TEXT, COUNT = {"type": "string"}, {"type": "integer"}
VIEWS = {
    each.name: each
    for each in (
        view("http.fetch_text", {"url": TEXT}, "url", level="read", about="Fetches a page."),
        view("python.run", {"code": TEXT, "packages": {"type": "array", "items": TEXT}}, "code", level="execute"),
        view("mail.send", {"to": {"type": "array", "items": TEXT}, "body": TEXT, "urgent": {"type": "boolean"}}, "to"),
        view("db.get", {"limit": COUNT, "share": {"type": "number"}, "rows": {"type": "array"}}, level="read"),
        view("weather_api", {"city": TEXT}, "city"),
        ToolView(name="any", schema={}, resources={}),
    )
}
