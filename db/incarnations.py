"""The lives of schedulers: who is alive, and whose leases may be taken back."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.engine import Source, driver


async def begin_incarnation(engine: AsyncEngine, incarnation: UUID, *, actor: str, exclusive: bool) -> None:
    """Write down a new life. Earlier lives of the same actor are over: two lives of one actor never overlap.

    ``exclusive``: no other scheduler can be using this database (we own its data folder), so every other life is over.
    """
    async with driver(engine) as connection, connection.transaction():
        await connection.execute(
            "UPDATE schedulers SET ended_at = now() WHERE ended_at IS NULL AND ($2 OR actor = $1)", actor, exclusive
        )
        await connection.execute("INSERT INTO schedulers (incarnation, actor) VALUES ($1, $2)", incarnation, actor)


async def heartbeat(engine: AsyncEngine, incarnation: UUID, *, lease_s: float) -> bool:
    """Say that we live, and end the lives that have been silent for ``lease_s``. False: somebody ended ours."""
    async with driver(engine) as connection:
        alive = await connection.fetchval(
            "UPDATE schedulers SET heartbeat_at = now() WHERE incarnation = $1 AND ended_at IS NULL RETURNING true",
            incarnation,
        )
        await connection.execute(
            "UPDATE schedulers SET ended_at = now() "
            "WHERE ended_at IS NULL AND heartbeat_at < now() - make_interval(secs => $1)",
            lease_s,
        )
    return bool(alive)


async def lives(source: Source, incarnation: UUID) -> bool:
    """Whether nobody has ended this life."""
    async with driver(source) as connection:
        return bool(
            await connection.fetchval(
                "SELECT true FROM schedulers WHERE incarnation = $1 AND ended_at IS NULL", incarnation
            )
        )


async def end_incarnation(engine: AsyncEngine, incarnation: UUID) -> None:
    """Say that this life is over, so that its leases are taken back at once."""
    async with driver(engine) as connection:
        await connection.execute("UPDATE schedulers SET ended_at = now() WHERE incarnation = $1", incarnation)


async def dead_with_leases(engine: AsyncEngine) -> tuple[UUID, ...]:
    """Incarnations that are over, or unknown, and that subtasks or tasks still name."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT h.incarnation FROM ("
            "  SELECT DISTINCT incarnation FROM sub_tasks WHERE incarnation IS NOT NULL"
            "  UNION SELECT incarnation FROM tasks WHERE status = 'SPLITTING' AND incarnation IS NOT NULL"
            "  UNION SELECT incarnation FROM tasks WHERE growth IS NOT NULL AND incarnation IS NOT NULL"
            ") h LEFT JOIN schedulers s ON s.incarnation = h.incarnation AND s.ended_at IS NULL "
            "WHERE s.incarnation IS NULL"
        )
    return tuple(row["incarnation"] for row in rows)
