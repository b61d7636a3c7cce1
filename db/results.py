"""Outputs and results as they are served: whole, byte for byte what their size and digest were told of."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.values import Json
from rayloom.db.attempts import INLINE_BYTES
from rayloom.db.blobs import Blob, BlobStore, lots
from rayloom.db.engine import driver

WHOLE_BYTES: Final = 64 * 1024 * 1024
LOT_BYTES: Final = 8 * 1024 * 1024
"""So much is fetched at a time, or one output."""
_THREAD_BYTES: Final = 1024 * 1024
REFERENCE_BYTES: Final = 1024
"""Of several sinks that together have more than ``WHOLE_BYTES``, each output over this is a reference in the result, as
in the database's ``task_result``."""

# In the order that jsonb has its keys in: so what is put together here is what the database would have made.
_SINKS: Final = """
SELECT key, output_blob, output_sha256, size, is_reference,
    CASE WHEN NOT is_reference THEN inline::text END AS inline
FROM (
    SELECT s.key, s.output_blob, s.output_sha256, z.size, coalesce(s.output_result, s.stand_in) AS inline,
        coalesce(s.output_size, 0) > $3 AND count(*) OVER () > 1
            AND sum(coalesce(s.output_size, 0)) OVER () > $2 AS is_reference
    FROM sub_tasks s
    CROSS JOIN LATERAL (SELECT coalesce(s.output_size, octet_length(s.stand_in::text)) AS size) z
    WHERE s.parent_id = $1 AND s.dependents = '{}' AND NOT s.superseded
) o ORDER BY length(key), key COLLATE "C"
"""


async def output_bytes(engine: AsyncEngine, blobs: BlobStore, task_id: UUID, key: str) -> bytes | None:
    """The whole output of a completed subtask as JSON; None when there is none. Raises as ``BlobStore.get``."""
    async with driver(engine) as connection:
        row = await connection.fetchrow(
            "SELECT output_result::text AS inline, output_blob FROM sub_tasks "
            "WHERE parent_id = $1 AND key = $2 AND status = 'COMPLETED'",
            task_id,
            key,
        )
    if row is None:
        return None
    if row["output_blob"] is not None:
        return await blobs.get(row["output_blob"])
    text: str = row["inline"]
    return text.encode()


async def result_bytes(engine: AsyncEngine, blobs: BlobStore, task_id: UUID, user_id: UUID) -> bytes | None:
    """The whole result of a user's COMPLETED task as JSON; None when there is none. Raises as ``BlobStore.get``."""
    async with driver(engine) as connection:
        completed = await connection.fetchval(
            "SELECT true FROM tasks WHERE id = $1 AND user_id = $2 AND status = 'COMPLETED'", task_id, user_id
        )
    return await _whole(engine, blobs, task_id) if completed else None


async def put_together(engine: AsyncEngine, blobs: BlobStore, task_id: UUID) -> Json:
    """The result of a COMPLETED task whose ``result_apart`` is set, as it is shown; and noted for whoever asks next.

    Holds no more of it than a lot of its pieces. Raises as ``BlobStore.get``.
    """
    return await note(engine, task_id, await shown(engine, blobs, task_id))


async def shown(engine: AsyncEngine, blobs: BlobStore, task_id: UUID) -> bytes:
    """The same as JSON text, not noted."""
    digest, size = hashlib.sha256(), 0
    inline: list[bytes] = []
    async for piece in _pieces(engine, blobs, task_id):
        size += len(piece)
        if size <= INLINE_BYTES:
            inline.append(piece)
        if len(piece) > _THREAD_BYTES:
            await asyncio.to_thread(digest.update, piece)
        else:
            digest.update(piece)
    if size <= INLINE_BYTES:
        return b"".join(inline)
    return orjson.dumps({"$blob": f"/api/v1/tasks/{task_id}/result", "size": size, "sha256": digest.hexdigest()})


async def note(engine: AsyncEngine, task_id: UUID, text: bytes) -> Json:
    """Write down what ``shown`` gave, unless it is; gives what is written down, just as who asks later will have it.

    Raises Transient when the database is away.
    """
    async with driver(engine) as connection:
        row = await connection.fetchrow(
            "UPDATE tasks SET result = $2, result_apart = false WHERE id = $1 AND result_apart RETURNING result",
            task_id,
            text.decode(),
        ) or await connection.fetchrow("SELECT result FROM tasks WHERE id = $1", task_id)
    result: Json = orjson.loads(text) if row is None else row["result"]
    return result


async def _whole(engine: AsyncEngine, blobs: BlobStore, task_id: UUID) -> bytes:
    return b"".join([piece async for piece in _pieces(engine, blobs, task_id)])


async def _pieces(engine: AsyncEngine, blobs: BlobStore, task_id: UUID) -> AsyncIterator[bytes]:
    async with driver(engine) as connection:
        rows = await connection.fetch(_SINKS, task_id, WHOLE_BYTES, REFERENCE_BYTES)
    if len(rows) != 1:
        yield b"{"
    for number, lot in enumerate(lots(rows, _fetched_bytes, bytes_max=LOT_BYTES, count_max=len(rows))):
        wanted = [Blob(sha256=row["output_blob"], size=row["size"]) for row in lot if _is_fetched(row)]
        kept = {sha256: data async for sha256, data in blobs.get_all(wanted)}
        for place, row in enumerate(lot):
            if len(rows) != 1:
                yield b'%s"%s": ' % (b", " if number or place else b"", row["key"].encode())
            yield _piece(task_id, row, kept)
    if len(rows) != 1:
        yield b"}"


def _is_fetched(row: asyncpg.Record) -> bool:
    return row["output_blob"] is not None and not row["is_reference"]


def _fetched_bytes(row: asyncpg.Record) -> int:
    return int(row["size"]) if _is_fetched(row) else 0


def _piece(task_id: UUID, row: asyncpg.Record, kept: dict[str, bytes]) -> bytes:
    """One output in the text of a result."""
    if row["is_reference"]:
        url, size, digest = f"/api/v1/tasks/{task_id}/subtasks/{row['key']}/output", row["size"], row["output_sha256"]
        return f'{{"size": {size}, "$blob": "{url}", "sha256": "{digest}"}}'.encode()
    if row["output_blob"] is not None:
        return kept[row["output_blob"]]
    inline: Any = row["inline"]
    return str(inline).encode()
