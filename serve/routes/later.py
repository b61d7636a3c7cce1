"""What the contract names and a later version brings: refused in plain words, after the key was checked."""

from __future__ import annotations

import re
from typing import Final

from fastapi import APIRouter

from rayloom.serve.auth import Me
from rayloom.serve.problems import Problem

router = APIRouter(tags=["later versions"])

ROUTES: Final = (
    ("POST", "/api/v1/tasks/{task_id}/approve", "approval"),
    ("POST", "/api/v1/tasks/{task_id}/reject", "approval"),
    ("POST", "/api/v1/tasks/{task_id}/retry", "retrying a task"),
    ("POST", "/api/v1/tasks/{task_id}/fork", "forking a task"),
    ("GET", "/api/v1/tasks/{task_id}/subtasks/{subtask}/waiting", "telling why a subtask waits"),
    ("GET", "/api/v1/dead-letters", "the dead-letter queue"),
    ("POST", "/api/v1/dead-letters/retry", "the dead-letter queue"),
    ("POST", "/api/v1/dead-letters/discard", "the dead-letter queue"),
    ("GET", "/api/v1/dead-letters/{letter_id}", "the dead-letter queue"),
    ("POST", "/api/v1/dead-letters/{letter_id}/retry", "the dead-letter queue"),
    ("POST", "/api/v1/dead-letters/{letter_id}/discard", "the dead-letter queue"),
    ("GET", "/mcp", "rayloom as an MCP server"),
    ("POST", "/mcp", "rayloom as an MCP server"),
    ("DELETE", "/mcp", "rayloom as an MCP server"),
)


def not_built(what: str) -> Problem:
    """The 501 of a feature that this version does not have."""
    return Problem(501, f"{what} is not built in this version", code="NOT_BUILT")


def _add(method: str, path: str, what: str) -> None:
    async def refuse(me: Me) -> None:
        raise not_built(what)

    # One path holds several methods: without an id of its own each would share the name of the first.
    id_ = f"later_{method}_{path}".replace("/", "_").replace("{", "").replace("}", "").replace("-", "_").lower()
    names = re.findall(r"\{(\w+)\}", path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    router.add_api_route(
        path, refuse, methods=[method], summary=f"Not built yet: {what}", operation_id=id_, status_code=501,
        openapi_extra={"parameters": parameters} if parameters else None,
    )  # fmt: skip


for _method, _path, _what in ROUTES:
    _add(_method, _path, _what)
