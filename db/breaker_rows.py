"""The breakers that are not closed, as the registry keeps them for its next life."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.breaker import Breaker
from rayloom.db.reader import reading, writing
from rayloom.db.schema_breakers import breakers


class BreakerRows:
    """The table ``breakers``. Every method raises Transient when the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def read(self) -> dict[str, Breaker]:
        """Those that are open, by their keys. One that was half open has lost its probe: the next one may look."""
        statement = select(breakers.c.key, breakers.c.retry_at, breakers.c.openings)
        async with reading(self._engine) as connection:
            rows = (await connection.execute(statement)).all()
        return {
            row.key: Breaker(state="open", retry_at=row.retry_at and row.retry_at.timestamp(), openings=row.openings)
            for row in rows
        }

    async def keep(self, key: str, breaker: Breaker) -> None:
        """It is open, or it is closed and there is nothing to keep."""
        if breaker.state == "closed":
            async with writing(self._engine) as connection:
                await connection.execute(delete(breakers).where(breakers.c.key == key))
            return
        retry_at = None if breaker.retry_at is None else datetime.fromtimestamp(breaker.retry_at, UTC)
        values = {"retry_at": retry_at, "openings": breaker.openings}
        statement = insert(breakers).values(key=key, **values)
        async with writing(self._engine) as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_=values))
