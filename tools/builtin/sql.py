"""sql.query: one read-only statement on a connection that an administrator named.

What holds: a read-only transaction or file, one statement, limits of time, rows and bytes, never rayloom's own
database, and on PostgreSQL no role that reaches files, programs or other connections. What can't: a function of the
database may do more than its caller (SECURITY DEFINER), and one row is read whole before it is known how large it is.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin import postgresql, sqlite
from rayloom.tools.builtin.database import refuse_own
from rayloom.tools.builtin.rows import SqlLimits
from rayloom.tools.native import AnyJson, ToolInput, native
from rayloom.tools.tool import ToolContext, ToolResult

MAX_SQL_CHARS: Final = 100_000


class QueryInput(ToolInput):
    """A statement, the connection it runs on, and its parameters: a list for $1 or ?, an object for :name (SQLite)."""

    connection: Annotated[str, Field(min_length=1, max_length=128)]
    sql: Annotated[str, Field(min_length=1, max_length=MAX_SQL_CHARS)]
    params: list[AnyJson] | dict[str, AnyJson] = Field(default_factory=list)


async def _query(input: QueryInput, context: ToolContext) -> ToolResult:
    settings = context.settings
    secret = settings.sql_connections.get(input.connection)
    if secret is None:
        known = ", ".join(sorted(settings.sql_connections)) or "none is configured"
        raise UserError("CONNECTION_UNKNOWN", f"there is no SQL connection {input.connection!r} ({known})")
    url = secret.get_secret_value()
    if "\0" in input.sql:
        raise UserError("SQL_INVALID", "a statement can't hold a NUL")
    limits = SqlLimits(
        timeout_s=settings.sql_timeout_s, max_rows=settings.sql_max_rows, max_bytes=settings.sql_max_bytes
    )
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme in ("postgresql", "postgres"):
        await refuse_own(url, [own.get_secret_value() for own in settings.sql_forbidden_urls])
        rows = await postgresql.query(url, input.sql, input.params, limits)
    elif scheme == "sqlite":
        rows = await sqlite.query(url, input.sql, input.params, limits)
    else:
        raise UserError("CONNECTION_INVALID", f"the connection {input.connection!r} is neither PostgreSQL nor SQLite")
    output: Json = {
        "columns": list(rows.columns),
        "rows": [list(row) for row in rows.rows],
        "truncated": rows.truncated,
    }
    return ToolResult(output=output)


QUERY = native(
    "sql.query",
    QueryInput,
    _query,
    description="Runs one read-only statement on a named connection (PostgreSQL or SQLite): {connection, sql, params} "
    "-> {columns, rows, truncated}. Dates and UUIDs come as text, decimals too where a "
    "number would be another one, bytes as base64.",
    permission_level="read",
    output_schema={
        "type": "object",
        "required": ["columns", "rows", "truncated"],
        "additionalProperties": False,
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "rows": {"type": "array", "items": {"type": "array"}},
            "truncated": {"type": "boolean"},
        },
    },
)
