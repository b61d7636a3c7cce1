"""Writing the full-chain log: lines in batches, one round trip each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import asyncpg

from rayloom.dag.errors import Transient
from rayloom.dag.log_line import LogLine
from rayloom.dag.output import clean_text
from rayloom.db.engine import Source, driver, dump

_log = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 16_384
LOG_LOCK = 0x6C6F6773
"""The class of advisory locks of logs: "logs" in ASCII."""


async def append(engine: Source, lines: Sequence[LogLine]) -> None:
    """Write lines. Text that PostgreSQL refuses (NUL, lone surrogates) is replaced; very long lines are cut."""
    if not lines:
        return
    async with driver(engine) as connection, connection.transaction():
        await append_in(connection, lines)


async def append_if_taken(engine: Source, lines: Sequence[LogLine]) -> None:
    """Write lines that nothing hangs on: where the database is away they are left out, and the caller goes on."""
    try:
        await append(engine, lines)
    except Transient as error:
        _log.warning("log_lines.left_out", extra={"count": len(lines), "error": error.message})


async def append_in(connection: asyncpg.Connection[Any], lines: Sequence[LogLine]) -> None:
    """The same in a transaction that somebody else has begun, as late in it as can be: other writers wait for its end.

    Who holds the row of a task may write its log, never the other way round.
    """
    # Writers of one task's log take turns, so that the ids of its lines become visible in their order: who follows
    # the log from an id on misses none.
    await connection.execute(
        "SELECT pg_advisory_xact_lock($1, hashtext(t)) FROM unnest($2::text[]) AS t",
        LOG_LOCK,
        sorted({line.task_id for line in lines}),
    )
    await connection.execute(
        "INSERT INTO log_lines (at, task_id, subtask, attempt, stream, level, message, fields) "
        "SELECT * FROM unnest($1::timestamptz[], $2::uuid[], $3::text[], $4::integer[], $5::text[], $6::text[], "
        "$7::text[], $8::jsonb[])",
        [line.at for line in lines],
        [line.task_id for line in lines],
        [line.subtask for line in lines],
        [line.attempt for line in lines],
        [line.stream for line in lines],
        [line.level for line in lines],
        [clean_text(line.message[:MAX_MESSAGE_CHARS]) for line in lines],
        [dump(line.fields) for line in lines],
    )
