"""Keys: who may come in."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.dag.tool_scope import Level
from rayloom.db import keys
from rayloom.db.keys import KeyRow
from rayloom.serve import cursors
from rayloom.serve.auth import Admin, user_of
from rayloom.serve.bodies import Body, expect_no_body, read_body, schema_of
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import deps_of
from rayloom.serve.intake import ToolRules
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import invalid, not_found

router = APIRouter(prefix="/api/v1", tags=["people"])


class KeyBody(Body):
    """The body of ``POST /api/v1/keys``."""

    user: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]
    role: Literal["admin", "user"] = "user"
    tools: ToolRules | None = Field(default=None, description="which tools it may use: globs of names; deny wins")
    max_level: Level | None = Field(default=None, description="the highest permission level of the tools it may use")


@router.get("/keys")
async def list_keys(
    request: Request,
    me: Admin,
    user_id: Annotated[str | None, Query(description="only the keys of this user")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """API keys, newest first, without the keys themselves."""
    after = cursors.decode_moment("keys", cursor)
    whose = None if user_id is None else user_of(user_id)
    rows = await keys.list_keys(deps_of(request).backends.primary, user_id=whose, after=after, limit=limit + 1)
    page = rows[:limit]
    next_cursor = cursors.encode_moment("keys", page[-1].created_at, page[-1].id) if len(rows) > limit else None
    return json_answer({"items": [_key(row) for row in page], "next_cursor": next_cursor})


def _key(row: KeyRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "user_id": row.user_id,
        "user": row.user,
        "role": row.role,
        "created_at": row.created_at,
        "tools": row.tools,
        "max_level": row.max_level,
    }


@router.post("/keys", status_code=201, openapi_extra=schema_of(KeyBody))
async def create_key(request: Request, me: Admin) -> Response:
    """Make a key, and its user when new. The key is shown this once."""
    body = await read_body(request, KeyBody)
    if body.role == "admin" and (body.tools or body.max_level):
        # It could make itself another one.
        raise invalid([Fault("/role", "a key of an admin can't be narrowed")])
    key = keys.new_key()
    row = await keys.create_key(
        deps_of(request).backends.primary,
        user=body.user,
        role=body.role,
        key=key,
        tools=None if body.tools is None else body.tools.model_dump(),
        max_level=body.max_level,
    )
    return json_answer({**_key(row), "key": key}, 201, {"Location": f"/api/v1/keys/{row.id}"})


@router.delete("/keys/{key_id}", status_code=204)
async def revoke_key(request: Request, me: Admin, key_id: str) -> Response:
    """Shut a key out from now on."""
    await expect_no_body(request)
    if not await keys.revoke_key(deps_of(request).backends.primary, cursors.uuid_of(key_id, "this key")):
        raise not_found("this key")
    return Response(status_code=204)
