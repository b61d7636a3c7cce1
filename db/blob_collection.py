"""Removes blobs that nothing refers to any more: those of tasks that are gone, and those that came to nothing.

Several may collect at once, while others put and refer. Who puts touches the row, so that it is young again, and waits
for who holds it; who refers makes the database look whether the row is there, and waits likewise. So the rows that are
removed here, while they are held, are old and unused, and stay so. Their objects in S3 are noted by the same commit and
removed after it, again and again until S3 has said that they are gone: a request to remove one may be late, or its
answer lost, but no other row ever has the same object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.db.blobs import BlobStore, split
from rayloom.db.engine import driver
from rayloom.db.s3 import BlobsAway

LOOKED_AT = 2_000
"""Blobs in one look, used or not."""
LOT = 50
"""So many are removed in one transaction."""

USED = (
    "(EXISTS (SELECT FROM sub_tasks s WHERE s.output_blob = b.sha256) "
    "OR EXISTS (SELECT FROM sub_tasks s WHERE s.input_blob = b.sha256) "
    "OR EXISTS (SELECT FROM task_files f WHERE f.sha256 = b.sha256) "
    "OR EXISTS (SELECT FROM tool_blobs k WHERE k.sha256 = b.sha256))"
)
_BASE = "regexp_replace(place, '/[^/]*$', '')"
_OLD = "b.touched_at < now() - make_interval(secs => {})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one look found: blobs that can go, and where the next look begins; empty: at the beginning."""

    unused: tuple[str, ...]
    after: str


async def look(engine: AsyncEngine, *, after: str, grace_s: float, limit: int = LOOKED_AT) -> Found:
    """Look at the next blobs in the order of their names. What can go is only a hint: ``remove`` looks again."""
    async with driver(engine) as connection:
        rows = await connection.fetch(
            f"SELECT b.sha256, {_OLD.format('$2')} AND NOT {USED} AS can_go FROM ("
            "  SELECT sha256, touched_at FROM blobs WHERE sha256 > $1 ORDER BY sha256 LIMIT $3"
            ") b ORDER BY b.sha256",
            after,
            grace_s,
            limit,
        )
    return Found(
        unused=tuple(row["sha256"] for row in rows if row["can_go"]),
        after=rows[-1]["sha256"] if len(rows) == limit else "",
    )


async def remove(engine: AsyncEngine, names: Sequence[str], *, grace_s: float) -> int:
    """Remove the rows of those of these blobs that can go now; gives how many. Objects in S3 are left as remains."""
    gone = 0
    for start in range(0, len(names), LOT):
        gone += await _remove(engine, names[start : start + LOT], grace_s)
    return gone


async def _remove(engine: AsyncEngine, names: Sequence[str], grace_s: float) -> int:
    async with driver(engine) as connection, connection.transaction():
        held = await connection.fetch(
            f"SELECT b.sha256 FROM blobs b WHERE b.sha256 = ANY ($1) AND {_OLD.format('$2')} FOR UPDATE SKIP LOCKED",
            list(names),
            grace_s,
        )
        # In a statement of its own, which sees what was committed before the row was held.
        gone = await connection.fetch(
            f"DELETE FROM blobs b WHERE b.sha256 = ANY ($1) AND NOT {USED} RETURNING b.place",
            [row["sha256"] for row in held],
        )
        places = [row["place"] for row in gone if row["place"] is not None]
        if places:
            await connection.execute("INSERT INTO blob_remains (place) SELECT unnest($1::text[])", places)
    return len(gone)


async def clear(engine: AsyncEngine, blobs: BlobStore, *, limit: int = LOOKED_AT) -> Sequence[BlobsAway]:
    """Remove objects whose rows are gone, about ``limit`` at most. A place that is away is left for another time, and
    does not keep us from the others; gives why each was. Raises Transient when the database is away.
    """
    left: dict[str, BlobsAway] = {}
    gone = 0
    while gone < limit:
        async with driver(engine) as connection:
            rows = await connection.fetch(
                f"SELECT place FROM blob_remains WHERE {_BASE} <> ALL ($1) ORDER BY {_BASE} LIMIT $2", [*left], LOT
            )
        if not rows:
            break
        base, _ = split(rows[0]["place"])
        places = [row["place"] for row in rows if split(row["place"])[0] == base]
        try:
            await blobs.at(base).delete([split(place)[1] for place in places])
        except BlobsAway as away:
            left[base] = away
            continue
        async with driver(engine) as connection:
            await connection.execute("DELETE FROM blob_remains WHERE place = ANY ($1)", places)
        gone += len(places)
    return tuple(left.values())
