"""Quotas and usage: how much somebody may use, and how much they did."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from rayloom.dag.amount import MAX_COST_USD
from rayloom.dag.errors import Transient
from rayloom.dag.token_port import Quota
from rayloom.db import keys
from rayloom.db.usage import read_usage
from rayloom.serve import cursors
from rayloom.serve.auth import Admin, Owner
from rayloom.serve.bodies import Body, read_body, schema_of
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.problems import not_found

router = APIRouter(prefix="/api/v1", tags=["people"])
CONTROLLER: Final = "the token controller"
FIGURES_TIMEOUT_S: Final = 2.0


class QuotaBody(Body):
    """The body of ``PUT /api/v1/quotas/{user_id}``; what is null or left out has no limit."""

    max_tokens: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    max_cost_usd: Annotated[float, Field(ge=0, le=MAX_COST_USD)] | None = None
    tokens_per_min: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    requests_per_min: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    max_concurrent: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None


@router.get("/quotas/{user_id}")
async def get_quota(request: Request, me: Admin, user_id: str) -> Response:
    """The limits of a user; null means none."""
    deps = deps_of(request)
    id_ = await _user(deps, user_id)
    return json_answer(asdict(await ask(deps.ports.tokens.quota(str(id_)), CONTROLLER)))


@router.put("/quotas/{user_id}", openapi_extra=schema_of(QuotaBody))
async def put_quota(request: Request, me: Admin, user_id: str) -> Response:
    """Change the limits of a user: all of them."""
    deps = deps_of(request)
    id_ = await _user(deps, user_id)
    quota = Quota(**(await read_body(request, QuotaBody)).model_dump())
    await ask(deps.ports.tokens.set_quota(str(id_), quota), CONTROLLER)
    return json_answer(asdict(quota))


@router.get("/keys/{key_id}/quota")
async def get_key_quota(request: Request, me: Admin, key_id: str) -> Response:
    """The limits of an API key, of the calls of models that are made for what it submits; null means none."""
    deps = deps_of(request)
    id_ = await _key(deps, key_id)
    return json_answer(asdict(await ask(deps.ports.tokens.key_quota(str(id_)), CONTROLLER)))


@router.put("/keys/{key_id}/quota", openapi_extra=schema_of(QuotaBody))
async def put_key_quota(request: Request, me: Admin, key_id: str) -> Response:
    """Change the limits of an API key: all of them."""
    deps = deps_of(request)
    id_ = await _key(deps, key_id)
    quota = Quota(**(await read_body(request, QuotaBody)).model_dump())
    await ask(deps.ports.tokens.set_key_quota(str(id_), quota), CONTROLLER)
    return json_answer(asdict(quota))


@router.get("/usage")
async def usage(
    request: Request,
    user: Owner,
    created_after: str | None = None,
    created_before: str | None = None,
) -> Response:
    """Tokens and cost used, by model, tool and day (UTC); of the last 30 days unless asked otherwise.

    What a tool said that it used has no model. `warnings`: limits that are nearly used up now; `alerts`: when each came
    to be so, also of keys and tasks.
    """
    deps = deps_of(request)
    since, until = cursors.moment("created_after", created_after), cursors.moment("created_before", created_before)
    found = await deps.backends.reads.current(lambda source: read_usage(source, user_id=user, since=since, until=until))
    total = {
        "tokens_in": sum(item.tokens_in for item in found.rows),
        "tokens_out": sum(item.tokens_out for item in found.rows),
        "cost_usd": sum(item.cost_usd for item in found.rows),
    }
    reserved = {"tokens": found.reserved.tokens, "cost_usd": found.reserved.cost_usd}
    return json_answer(
        {
            "items": [asdict(item) for item in found.rows],
            "total": total,
            "reserved": reserved,
            "warnings": await _warnings(deps, user),
            "alerts": [asdict(alert) for alert in found.alerts],
        }
    )


async def _warnings(deps: Deps, user_id: UUID) -> list[str]:
    """Which limits of a user are nearly used up; none while nobody can say."""
    try:
        figures = await ask(deps.ports.tokens.figures(str(user_id)), CONTROLLER, timeout_s=FIGURES_TIMEOUT_S)
    except Transient:
        return []
    near = [each for each in figures.shares if each.level == "user" and each.share >= figures.warn_share]
    return [f"{each.limit}: {each.share:.0%} of it is used" for each in near]


async def _user(deps: Deps, user_id: str) -> UUID:
    id_ = cursors.uuid_of(user_id, "this user")
    if not await keys.user_exists(deps.backends.primary, id_):
        raise not_found("this user")
    return id_


async def _key(deps: Deps, key_id: str) -> UUID:
    id_ = cursors.uuid_of(key_id, "this key")
    if not await keys.key_exists(deps.backends.primary, id_):
        raise not_found("this key")
    return id_
