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

WORKER_GRANTS = (
    "GRANT USAGE ON SCHEMA public TO {role}",
    "GRANT SELECT (id, parent_id, key, status, attempt, output_result) ON sub_tasks TO {role}",
    "GRANT INSERT ON log_lines TO {role}",
    "GRANT SELECT, INSERT ON blobs TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON task_files TO {role}",
    "GRANT EXECUTE ON FUNCTION begin_attempt(uuid, integer, text) TO {role}",
    "GRANT EXECUTE ON FUNCTION report_phase(uuid, integer, text, text) TO {role}",
)


class WorkerRoleError(Exception):
    """The role of the workers can't be made; the message is one line."""


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def upgrade(url: str) -> None:
    """Apply what is missing. Several processes may do so at once: an advisory lock makes them take turns."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as guard, engine.connect() as connection:
            await guard.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            try:
                await connection.run_sync(_upgrade)
                await connection.commit()
            finally:
                await guard.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
    finally:
        await engine.dispose()


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
        if "InsufficientPrivilege" not in type(error.orig).__name__ and "permission denied" not in str(error.orig):
            told = str((error.orig and error.orig.__cause__) or error.orig).partition("\n")[0]
            raise WorkerRoleError(f"the workers' role {role} can't be made: {told}") from None
        return None
    finally:
        await engine.dispose()
    return make_url(url).set(username=role, password=password).render_as_string(hide_password=False)
