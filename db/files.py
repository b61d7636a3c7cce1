"""A task's workspace: files by path, their contents in the blob store by hash, so the same on every node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypedDict

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import UserError
from rayloom.db.engine import driver


class StoredFile(TypedDict):
    """One file of a workspace; ``size`` in bytes."""

    path: str
    size: int
    sha256: str


class TaskFiles:
    """The files of one task."""

    def __init__(self, engine: AsyncEngine, task_id: str) -> None:
        self._engine = engine
        self._task_id = task_id

    async def write(self, path: str, data: bytes, media_type: str) -> None:
        """Store a file, in place of an earlier one of the same path."""
        sha256 = hashlib.sha256(data).hexdigest()
        async with driver(self._engine) as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO blobs (sha256, size, data) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                sha256,
                len(data),
                data,
            )
            await connection.execute(
                "INSERT INTO task_files (task_id, path, sha256, size, media_type) VALUES ($1::uuid, $2, $3, $4, $5) "
                "ON CONFLICT (task_id, path) DO UPDATE SET sha256 = $3, size = $4, media_type = $5, updated_at = now()",
                self._task_id, path, sha256, len(data), media_type,
            )  # fmt: skip

    async def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError (``FILE_NOT_FOUND``)."""
        async with driver(self._engine) as connection:
            data = await connection.fetchval(
                "SELECT b.data FROM task_files f JOIN blobs b ON b.sha256 = f.sha256 "
                "WHERE f.task_id = $1::uuid AND f.path = $2",
                self._task_id,
                path,
            )
        if data is None:
            raise UserError("FILE_NOT_FOUND", f"the workspace has no file {path!r}")
        return bytes(data)

    async def list(self) -> Sequence[StoredFile]:
        """Every file, sorted by path."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(
                "SELECT path, size, sha256 FROM task_files WHERE task_id = $1::uuid ORDER BY path", self._task_id
            )
        return [StoredFile(path=row["path"], size=row["size"], sha256=row["sha256"]) for row in rows]
