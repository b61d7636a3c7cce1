"""One read-only statement on a SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.tools.builtin.rows import Rows, SqlLimits, Taker

STEPS_BETWEEN_CHECKS: Final = 10_000
VALUE_BYTES: Final = 16 * 1024 * 1024
"""A statement may work on larger values than may be given out."""
"""The limit of a value's length is never less: it holds for the schema's own rows too."""
_READING: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
# Those that tell and change nothing.
_PRAGMAS: Final = frozenset(
    {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "foreign_key_list", "database_list"}
)
_FUNCTIONS_DENIED: Final = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"})


async def query(url: str, sql: str, params: Sequence[Any] | Mapping[str, Any], limits: SqlLimits) -> Rows:
    """The rows of one statement.

    Raises UserError (``SQL_INVALID``, ``CONNECTION_INVALID``), Refused (``SQL_READ_ONLY``) and Transient
    (``SQL_TIMEOUT``, ``SQL_UNAVAILABLE``).
    """
    stop = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(_query, _path(url), sql, params, limits, stop))
    # After a cancellation nobody asks for its error any more.
    work.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
    try:
        return await asyncio.shield(work)
    finally:
        # Cancelled or not, the thread ends at its next check.
        stop.set()


def _path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc or not parts.path.startswith("/") or not parts.path.strip("/"):
        raise UserError("CONNECTION_INVALID", "a SQLite connection is written sqlite:////absolute/path")
    return Path(unquote("/" + parts.path.lstrip("/")))


def _query(
    path: Path, sql: str, params: Sequence[Any] | Mapping[str, Any], limits: SqlLimits, stop: threading.Event
) -> Rows:
    deadline = time.monotonic() + limits.timeout_s
    taker = Taker(limits)
    try:
        opened = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=min(limits.timeout_s, 5.0))
        with closing(opened) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(limits.max_bytes, VALUE_BYTES))
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.set_authorizer(_authorize)
            connection.set_progress_handler(lambda: stop.is_set() or time.monotonic() > deadline, STEPS_BETWEEN_CHECKS)
            with closing(connection.execute(sql, params)) as cursor:
                columns = [column[0] for column in cursor.description or ()]
                # Row by row: what is fetched is held.
                while (row := cursor.fetchone()) is not None and taker.take(row):
                    pass
    except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
        raise _named(error, limits) from None
    return Rows(columns=columns, rows=taker.rows, truncated=taker.truncated)


def _authorize(action: int, first: str | None, second: str | None, _database: str | None, _source: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS_DENIED:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA:
        return sqlite3.SQLITE_OK if (first or "").lower() in _PRAGMAS else sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _named(error: Exception, limits: SqlLimits) -> RayloomError:
    message = str(error)
    if (
        "not authorized" in message
        or "authorization denied" in message
        or "readonly" in message
        or "prohibited" in message
    ):
        return Refused("SQL_READ_ONLY", f"only reading is allowed: {message}")
    if message == "interrupted":
        return Transient("SQL_TIMEOUT", f"the statement took longer than {limits.timeout_s:g} s")
    if "unable to open" in message:
        return UserError("CONNECTION_INVALID", "the connection's file can't be opened")
    if "locked" in message or "busy" in message:
        return Transient("SQL_UNAVAILABLE", message)
    return UserError("SQL_INVALID", message)
