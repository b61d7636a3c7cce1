"""Keys, quotas and usage: who may come in, how much they may use, how much they did."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field, StringConstraints
from starlette.responses import Response

from rayloom.dag.errors import Fault
from rayloom.dag.ports import Quota
from rayloom.dag.tool_scope import Level
from rayloom.db import keys
from rayloom.db.keys import KeyRow
from rayloom.db.usage import read_usage
from rayloom.serve import cursors
from rayloom.serve.auth import Admin, Owner, user_of
from rayloom.serve.bodies import Body, read_body, schema_of
from rayloom.serve.cursors import Cursor, Limit
from rayloom.serve.deps import ask, deps_of
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


class QuotaBody(Body):
    """The body of ``PUT /api/v1/quotas/{user_id}``; what is null or left out has no limit."""

    max_tokens: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    max_cost_usd: Annotated[float, Field(ge=0, le=1e12)] | None = None
    tokens_per_min: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    requests_per_min: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    max_concurrent: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


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
    if not await keys.revoke_key(deps_of(request).backends.primary, cursors.uuid_of(key_id, "this key")):
        raise not_found("this key")
    return Response(status_code=204)


@router.get("/quotas/{user_id}")
async def get_quota(request: Request, me: Admin, user_id: str) -> Response:
    """The limits of a user; null means none."""
    deps = deps_of(request)
    id_ = cursors.uuid_of(user_id, "this user")
    if not await keys.user_exists(deps.backends.primary, id_):
        raise not_found("this user")
    quota = await ask(deps.ports.tokens.quota(str(id_)), "the token controller")
    return json_answer(asdict(quota))


@router.put("/quotas/{user_id}", openapi_extra=schema_of(QuotaBody))
async def put_quota(request: Request, me: Admin, user_id: str) -> Response:
    """Change the limits of a user: all of them."""
    deps = deps_of(request)
    id_ = cursors.uuid_of(user_id, "this user")
    body = await read_body(request, QuotaBody)
    if not await keys.user_exists(deps.backends.primary, id_):
        raise not_found("this user")
    quota = Quota(**body.model_dump())
    await ask(deps.ports.tokens.set_quota(str(id_), quota), "the token controller")
    return json_answer(asdict(quota))


@router.get("/usage")
async def usage(
    request: Request,
    user: Owner,
    created_after: str | None = None,
    created_before: str | None = None,
) -> Response:
    """Tokens and cost used, by tool and day (UTC); of the last 30 days unless asked otherwise."""
    since, until = cursors.moment("created_after", created_after), cursors.moment("created_before", created_before)
    items = await deps_of(request).backends.reads.current(
        lambda source: read_usage(source, user_id=user, since=since, until=until)
    )
    shown = [
        {
            "user_id": item.user_id,
            "model": None,
            "tool": item.tool or None,
            "day": item.day,
            "tokens_in": item.tokens,
            "tokens_out": 0,
            "cost_usd": 0.0,
        }
        for item in items
    ]
    total = {"tokens_in": sum(item.tokens for item in items), "tokens_out": 0, "cost_usd": 0.0}
    # Only calls of models reserve, and no model runs in this version.
    return json_answer({"items": shown, "total": total, "reserved": {"tokens": 0, "cost_usd": 0.0}})
