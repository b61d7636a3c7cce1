"""The roles that `sql.query` refuses: those that reach files, programs or other connections.

A read-only transaction stops writes to its own database. It stops no function that reads a file of the server, runs a
program, or opens a connection to another database, which may write.
"""

from __future__ import annotations

from typing import Any, Final

from rayloom.dag.errors import Refused

CODE: Final = "SQL_ROLE_REFUSED"
_REASONS: Final = 3
"""So many reasons are named."""
_ADVICE: Final = (
    "name a connection whose role only reads: CREATE ROLE reader LOGIN PASSWORD '…'; GRANT SELECT ON ALL TABLES IN "
    "SCHEMA public TO reader"
)
# Files of the server, as PostgreSQL brings them. Superusers alone may call them until they are granted.
_FILE_FUNCTIONS: Final = (
    "pg_read_file", "pg_read_binary_file", "pg_ls_dir", "pg_stat_file", "lo_import", "lo_export",
)  # fmt: skip
# Libraries of extensions: other connections, files, HTTP, and sessions beside this one.
_LIBRARIES: Final = r"(^|/)(dblink|adminpack|http|pg_background)(\.[a-z]+)?$"
_ROLES: Final = ("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program")

# `session_user` may become each role that it is a member of, inherited or not: `set_config('role', …)` is a SELECT.
_LOOK: Final = """
WITH reached AS (
    SELECT oid, rolname, rolsuper, rolreplication FROM pg_catalog.pg_roles
    WHERE pg_catalog.pg_has_role(session_user, oid, 'MEMBER')
)
SELECT 1 AS place, rolname::text AS name, CASE
    WHEN rolsuper THEN 'superuser' WHEN rolreplication THEN 'replication' ELSE 'predefined' END AS kind,
    rolname = session_user AS is_own
FROM reached WHERE rolsuper OR rolreplication OR rolname = ANY ($1::text[])
UNION ALL
SELECT 2, function.oid::pg_catalog.regprocedure::text, 'function', false
FROM pg_catalog.pg_proc AS function JOIN pg_catalog.pg_language AS language ON language.oid = function.prolang
WHERE function.prorettype <> ALL ('{pg_catalog.trigger, pg_catalog.event_trigger}'::pg_catalog.regtype[])
    AND (
        function.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND function.proname = ANY ($2::text[])
        OR function.probin ~ $3
        OR NOT language.lanpltrusted AND language.lanname NOT IN ('internal', 'c')
    )
    AND EXISTS (SELECT FROM reached WHERE pg_catalog.has_function_privilege(reached.oid, function.oid, 'EXECUTE'))
ORDER BY place, is_own DESC, kind DESC, name LIMIT $4
"""


async def refuse_mighty(connection: Any) -> None:
    """Refuse a connection whose role can do more than read its database. Raises Refused (``SQL_ROLE_REFUSED``)."""
    rows = await connection.fetch(_LOOK, list(_ROLES), list(_FILE_FUNCTIONS), _LIBRARIES, _REASONS + 1)
    if rows:
        own = await connection.fetchval("SELECT session_user::text")
        if rows[0]["kind"] == "superuser" and rows[0]["is_own"]:
            # It may do all the rest, too.
            del rows[1:]
        reasons = [_reason(row["kind"], row["name"], own) for row in rows[:_REASONS]]
        more = "; and more" if len(rows) > _REASONS else ""
        raise Refused(CODE, f"the role {own!r} of this connection {'; it '.join(reasons)}{more}: {_ADVICE}")


def _reason(kind: str, name: str, own: str) -> str:
    match kind:
        case "superuser":
            return "is a superuser" if name == own else f"can become the superuser {name!r}"
        case "replication":
            whose = "has REPLICATION" if name == own else f"can become {name!r}, which has REPLICATION"
            return f"{whose}, which reads the changes of every table"
        case "predefined":
            return f"is a member of {name}"
        case _:
            return f"can call {name}, which leaves the database (revoke EXECUTE from the role and from PUBLIC)"
