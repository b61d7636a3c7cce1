"""Brings the schema of a database to the newest revision, and makes the restricted role of the workers."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from rayloom.db.scram import verifier

# Any number that nobody else uses for an advisory lock in this database: "rayl" in ASCII.
MIGRATION_LOCK = 0x7261796C

_READ = ("id", "parent_id", "key", "status", "attempt", "output_result", "stand_in", "output_blob", "output_size")
_HELD_BY_GRANT = {
    "GRANT USAGE ON SCHEMA public TO {role}": ("has_schema_privilege('public', 'USAGE')",),
    f"GRANT SELECT ({', '.join(_READ)}) ON sub_tasks TO {{role}}": tuple(
        f"has_column_privilege('sub_tasks', '{column}', 'SELECT')" for column in _READ
    ),
    "GRANT INSERT ON log_lines TO {role}": ("has_table_privilege('log_lines', 'INSERT')",),
    "GRANT SELECT, INSERT, UPDATE (touched_at) ON blobs TO {role}": (
        "has_table_privilege('blobs', 'SELECT')",
        "has_table_privilege('blobs', 'INSERT')",
        "has_column_privilege('blobs', 'touched_at', 'UPDATE')",
    ),
    "GRANT SELECT, INSERT, UPDATE ON task_files TO {role}": tuple(
        f"has_table_privilege('task_files', '{right}')" for right in ("SELECT", "INSERT", "UPDATE")
    ),
    "GRANT EXECUTE ON FUNCTION begin_attempt(uuid, integer, text, text) TO {role}": (
        "has_function_privilege('begin_attempt(uuid, integer, text, text)', 'EXECUTE')",
    ),
    "GRANT EXECUTE ON FUNCTION report_phase(uuid, integer, text, text, text) TO {role}": (
        "has_function_privilege('report_phase(uuid, integer, text, text, text)', 'EXECUTE')",
    ),
}
"""What a worker's role is granted, and by what it sees whether it has it."""
WORKER_GRANTS = tuple(_HELD_BY_GRANT)


class MigrationError(Exception):
    """The role may not bring the schema to this version; the message is one line."""


class WorkerRoleError(Exception):
    """The role of the workers can't be made; the message is one line."""


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def upgrade(url: str) -> None:
    """Apply what is missing. Several processes may do so at once: an advisory lock makes them take turns.

    Raises MigrationError where the role of ``url`` lacks a right.
    """
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as guard, engine.connect() as connection:
            await guard.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            try:
                await connection.run_sync(_upgrade)
                await connection.commit()
            finally:
                await guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
    except DBAPIError as error:
        if not _lacks_rights(error):
            raise
        raise MigrationError(
            f"the database can't be brought to this version's schema: {_told(error)}; the role of RAYLOOM_DATABASE_URL "
            "has to own what rayloom has made, and to be allowed to make more (GRANT CREATE ON SCHEMA public)"
        ) from None
    finally:
        await engine.dispose()


async def missing_grants(url: str) -> list[str]:
    """The grants that the role of ``url`` lacks to be one for workers: statements, to be run by who owns the tables."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            role = await connection.scalar(text("SELECT quote_ident(current_user)"))
            columns = ", ".join(" AND ".join(checks) for checks in _HELD_BY_GRANT.values())
            held = (await connection.exec_driver_sql(f"SELECT {columns}")).one()
    finally:
        await engine.dispose()
    return [grant.format(role=role) for grant, has in zip(WORKER_GRANTS, held, strict=True) if not has]


async def ensure_worker_role(url: str, *, role: str, password: str) -> str | None:
    """Make the role that workers use: it reads outputs and writes logs and files, and nothing else.

    Answers the workers' URL; None when our own role may not create roles (workers then use ``url``). Raises
    WorkerRoleError, which says nothing of the password, nor of what is kept of it.
    """
    if not (role + password).isascii() or not role.replace("_", "").isalnum() or not password.isalnum():
        raise ValueError("role and password of the workers must be plain letters and digits")
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            known = await connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
            # Servers log statements that fail, and the drivers' errors show them: no password in one.
            # What it may not do is said only once: before PostgreSQL 16 a role that is no superuser may make roles, but
            # not so much as name that attribute of one that exists.
            verb = "ALTER ROLE {} LOGIN" if known else "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE"
            # Not as `text`, which takes what follows a colon for a parameter.
            await connection.exec_driver_sql(f"{verb.format(role)} PASSWORD '{verifier(password)}'")
            for grant in WORKER_GRANTS:
                await connection.execute(text(grant.format(role=role)))
            await connection.commit()
    except DBAPIError as error:
        if not _lacks_rights(error):
            raise WorkerRoleError(f"the workers' role {role} can't be made: {_told(error)}") from None
        return None
    finally:
        await engine.dispose()
    return make_url(url).set(username=role, password=password).render_as_string(hide_password=False)


def _lacks_rights(error: DBAPIError) -> bool:
    return "InsufficientPrivilege" in type(error.orig).__name__ or "permission denied" in str(error.orig)


def _told(error: DBAPIError) -> str:
    """What PostgreSQL said, in one line."""
    return str((error.orig and error.orig.__cause__) or error.orig).partition("\n")[0]
