"""What subtasks that are done have given, for those that refer to it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.references import Outputs
from rayloom.db.blobs import Blob, BlobStore
from rayloom.db.engine import driver
from rayloom.db.s3 import in_time


async def outputs(
    engine: AsyncEngine, blobs: BlobStore, task_id: str, keys: Sequence[str], *, within_s: float
) -> Outputs:
    """The outputs of subtasks of a task that are done; of those that are missing, what stands in for them.

    Each that is kept apart is fetched once; all of these have to come within so many seconds. Raises what
    ``BlobStore.get`` raises.
    """
    async with driver(engine) as connection:
        rows = await connection.fetch(
            "SELECT key, status, coalesce(output_result, stand_in) AS output, output_blob, output_size FROM sub_tasks "
            "WHERE parent_id = $1::uuid AND key = ANY ($2) "
            "AND (status = 'COMPLETED' OR (status = 'BLOCKED' AND stand_in IS NOT NULL))",
            task_id,
            list(keys),
        )
    values = {row["key"]: row["output"] for row in rows}
    apart = {row["key"]: row["output_blob"] for row in rows if row["output_blob"] is not None}
    if apart:
        wanted = [Blob(sha256=row["output_blob"], size=row["output_size"]) for row in rows if row["key"] in apart]
        async with in_time(within_s):
            documents = await blobs.documents(wanted)
        values |= {key: documents[sha256] for key, sha256 in apart.items()}
    return Outputs(
        values=values,
        nothing=frozenset(row["key"] for row in rows if row["status"] != "COMPLETED" and row["output"] is None),
    )
