"""Users and their API keys. A key is shown once and kept as its SHA-256.

The keys that we make hold 256 random bits, so no salt; a first key that somebody chose is as strong as they chose it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Row, Select, and_, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Refused
from rayloom.dag.tool_scope import ALL_TOOLS, LEVELS, Level, ToolScope
from rayloom.dag.values import JsonObject
from rayloom.db.reader import reading, writing
from rayloom.db.schema import api_keys, users

Role = Literal["admin", "user"]
KEY_PREFIX: Final = "rl_"
MAX_KEY_CHARS: Final = 512
"""No key is longer; whoever sends more is not worth a look."""
_ADMINS_LOCK: Final = 0x61646D6E


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a request comes from."""

    user_id: UUID
    user: str
    role: Role
    key_id: UUID
    scope: ToolScope = ALL_TOOLS
    """The tools that its role and its key allow."""

    @property
    def is_admin(self) -> bool:
        """Whether what only admins may do is allowed."""
        return self.role == "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key as it may be shown: without the key itself."""

    id: UUID
    user_id: UUID
    user: str
    role: Role
    created_at: datetime
    tools: JsonObject | None = None
    max_level: Level | None = None


def new_key() -> str:
    """A fresh key: ``rl_`` and 43 URL-safe characters."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


async def identify(engine: AsyncEngine, key: str) -> Principal | None:
    """Whose key it is; None for a key that is unknown or revoked."""
    statement = (
        select(api_keys.c.id, api_keys.c.user_id, api_keys.c.role, users.c.name, api_keys.c.tools, api_keys.c.max_level)
        .join(users, users.c.id == api_keys.c.user_id)
        .where(api_keys.c.key_hash == hash_of(key), api_keys.c.revoked_at.is_(None))
    )
    async with reading(engine) as connection:
        row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    scope = _scope(row.role, row.tools, row.max_level)
    return Principal(user_id=row.user_id, user=row.name, role=row.role, key_id=row.id, scope=scope)


def _scope(role: Role, tools: JsonObject | None, max_level: Level | None) -> ToolScope:
    given = ToolScope.of(tools)
    most: Level = "admin" if role == "admin" else "execute"
    return replace(given, max_level=min(most, max_level or most, key=LEVELS.index))


async def create_key(
    engine: AsyncEngine,
    *,
    user: str,
    role: Role,
    key: str,
    tools: JsonObject | None = None,
    max_level: Level | None = None,
) -> KeyRow:
    """Store a key of a user, who is made when new. Storing a key that is known already changes nothing.

    ``tools``, ``{allow, deny}``, and ``max_level`` narrow the tools that it may use; None narrows nothing.
    """
    async with writing(engine) as connection:
        user_id = await _user(connection, user)
        values = {"user_id": user_id, "role": role, "key_hash": hash_of(key), "tools": tools, "max_level": max_level}
        statement = insert(api_keys).values(id=uuid7(), **values)
        await connection.execute(statement.on_conflict_do_nothing(index_elements=["key_hash"]))
        found = _shown().where(api_keys.c.key_hash == hash_of(key))
        row = (await connection.execute(found)).one()
    return _row(row)


async def ensure_admin(engine: AsyncEngine, *, key: str, user: str = "admin") -> bool:
    """Make sure that ``key`` opens the door for an admin; called at every start with the first key.

    False for a key that was revoked: it stays so.
    """
    await create_key(engine, user=user, role="admin", key=key)
    return await identify(engine, key) is not None


async def _user(connection: AsyncConnection, name: str) -> UUID:
    made = insert(users).values(id=uuid7(), name=name).on_conflict_do_nothing(index_elements=["name"])
    await connection.execute(made)
    found: UUID | None = await connection.scalar(select(users.c.id).where(users.c.name == name))
    assert found is not None
    return found


async def user_exists(engine: AsyncEngine, user_id: UUID) -> bool:
    """Whether there is such a user."""
    async with reading(engine) as connection:
        return bool(await connection.scalar(select(func.count()).select_from(users).where(users.c.id == user_id)))


async def key_exists(engine: AsyncEngine, key_id: UUID) -> bool:
    """Whether there is such a key that is not revoked."""
    live = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
    async with reading(engine) as connection:
        return bool(await connection.scalar(select(func.count()).select_from(api_keys).where(live)))


async def list_keys(
    engine: AsyncEngine, *, user_id: UUID | None, after: tuple[datetime, UUID] | None, limit: int
) -> list[KeyRow]:
    """Keys that open the door, newest first; ``after`` is the last one of the page before."""
    statement = _shown().where(api_keys.c.revoked_at.is_(None))
    if user_id is not None:
        statement = statement.where(api_keys.c.user_id == user_id)
    if after is not None:
        at, last = after
        older = and_(api_keys.c.created_at == at, api_keys.c.id < last)
        statement = statement.where(or_(api_keys.c.created_at < at, older))
    statement = statement.order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc()).limit(limit)
    async with reading(engine) as connection:
        rows = (await connection.execute(statement)).all()
    return [_row(row) for row in rows]


async def revoke_key(engine: AsyncEngine, key_id: UUID) -> bool:
    """Shut a key out from now on; False when there is none. Raises Refused (``LAST_ADMIN``) for an admin's last key."""
    live = api_keys.c.revoked_at.is_(None)
    async with writing(engine) as connection:
        # Two admins that revoke each other's key at once must not lock everybody out.
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADMINS_LOCK})
        role = await connection.scalar(select(api_keys.c.role).where(api_keys.c.id == key_id, live))
        if role is None:
            return False
        if role == "admin":
            others = select(func.count()).select_from(api_keys)
            left = await connection.scalar(others.where(live, api_keys.c.role == "admin", api_keys.c.id != key_id))
            if not left:
                raise Refused("LAST_ADMIN", "this is the last key of an admin: make another one first")
        await connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=func.now()))
    return True


def _shown() -> Select[Any]:
    columns = ("id", "user_id", "role", "created_at", "tools", "max_level")
    return select(*(api_keys.c[name] for name in columns), users.c.name).join(users, users.c.id == api_keys.c.user_id)


def _row(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.id,
        user_id=row.user_id,
        user=row.name,
        role=row.role,
        created_at=row.created_at,
        tools=row.tools,
        max_level=row.max_level,
    )
