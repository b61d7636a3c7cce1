"""What tools keep in the blob store: the contents of Skills. They stay for as long as the tool is there."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg


async def refer(connection: asyncpg.Connection[asyncpg.Record], tool: str, contents: Sequence[str]) -> None:
    """Let a tool's row, which is there, hold these contents.

    Raises asyncpg.ForeignKeyViolationError for one that the blob store does not have.
    """
    await connection.execute(
        "INSERT INTO tool_blobs (tool_id, sha256) SELECT DISTINCT t.id, given.sha256 "
        "FROM tools t, unnest($2::text[]) AS given (sha256) WHERE t.name = $1",
        tool,
        list(contents),
    )
