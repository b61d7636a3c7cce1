"""Who a request comes from, and whose things it may see."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from rayloom.dag.errors import Fault
from rayloom.db import keys
from rayloom.db.keys import Principal
from rayloom.serve.deps import deps_of
from rayloom.serve.gate import call_of
from rayloom.serve.problems import Problem, invalid

BEARER = HTTPBearer(auto_error=False, description="Authorization: Bearer <key>")
KEY_HEADER = APIKeyHeader(name="X-API-Key", auto_error=False)


async def authenticate(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    header: Annotated[str | None, Security(KEY_HEADER)],
) -> Principal:
    """Who asks. Raises Problem (401)."""
    key = bearer.credentials if bearer is not None else header
    if not key:
        raise _unauthorized("a key is needed: Authorization: Bearer <key>, or X-API-Key: <key>")
    known = len(key) <= keys.MAX_KEY_CHARS and await keys.identify(deps_of(request).backends.primary, key)
    if not known:
        raise _unauthorized("the key is unknown or was revoked")
    call_of(request).upload.sender = str(known.user_id)
    return known


def _unauthorized(detail: str) -> Problem:
    return Problem(401, detail, code="UNAUTHORIZED", headers={"WWW-Authenticate": 'Bearer realm="rayloom"'})


Me = Annotated[Principal, Depends(authenticate)]


async def admin(me: Me) -> Principal:
    """An admin who asks. Raises Problem (403)."""
    if not me.is_admin:
        raise Problem(403, "only an admin may do this", code="FORBIDDEN")
    return me


Admin = Annotated[Principal, Depends(admin)]


def user_of(user_id: str) -> UUID:
    """The user that ``?user_id=`` names. Raises Problem (422)."""
    try:
        return UUID(user_id)
    except ValueError:
        raise invalid([Fault("/query/user_id", "must be a UUID")]) from None


async def owner(
    me: Me,
    user_id: Annotated[str | None, Query(description="admins only: act on what this user owns")] = None,
) -> UUID:
    """Whose things are meant: mine, or those of ``?user_id=`` for an admin. Raises Problem (403, 422)."""
    if user_id is None:
        return me.user_id
    wanted = user_of(user_id)
    if wanted != me.user_id and not me.is_admin:
        raise Problem(403, "only an admin may look at what another user owns", code="FORBIDDEN")
    return wanted


Owner = Annotated[UUID, Depends(owner)]
