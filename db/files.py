"""A task's workspace: files by path, their contents in the blob store by hash, so the same on every node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Bug, UserError
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver


class StoredFile(TypedDict):
    """One file of a workspace; ``size`` in bytes."""

    path: str
    size: int
    sha256: str


class TaskFiles:
    """The files of one task."""

    def __init__(self, engine: AsyncEngine, blobs: BlobStore, task_id: str) -> None:
        self._engine, self._blobs, self._task_id = engine, blobs, task_id

    async def write(self, path: str, data: bytes, media_type: str) -> None:
        """Store a file, in place of an earlier one of the same path."""
        blob = await self._blobs.put(data)
        async with driver(self._engine) as connection:
            await connection.execute(
                "INSERT INTO task_files (task_id, path, sha256, size, media_type) VALUES ($1::uuid, $2, $3, $4, $5) "
                "ON CONFLICT (task_id, path) DO UPDATE SET sha256 = $3, size = $4, media_type = $5, updated_at = now()",
                self._task_id, path, blob.sha256, blob.size, media_type,
            )  # fmt: skip

    async def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError (``FILE_NOT_FOUND``)."""
        sha256 = await self._sha256(path)
        try:
            return await self._blobs.get(sha256)
        except Bug:
            # It may have been replaced, and its old content collected, since we looked.
            again = await self._sha256(path)
            if again == sha256:
                raise
            return await self._blobs.get(again)

    async def _sha256(self, path: str) -> str:
        async with driver(self._engine) as connection:
            found: str | None = await connection.fetchval(
                "SELECT sha256 FROM task_files WHERE task_id = $1::uuid AND path = $2", self._task_id, path
            )
        if found is None:
            raise UserError("FILE_NOT_FOUND", f"the workspace has no file {path!r}")
        return found

    async def list(self) -> Sequence[StoredFile]:
        """Every file, sorted by path."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch(
                "SELECT path, size, sha256 FROM task_files WHERE task_id = $1::uuid ORDER BY path", self._task_id
            )
        return [StoredFile(path=row["path"], size=row["size"], sha256=row["sha256"]) for row in rows]
