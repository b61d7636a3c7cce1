"""Migrations: safe when several start at once, and done once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from uuid_utils.compat import uuid7

from rayloom.db import migrations
from rayloom.db.migrate import MigrationError, upgrade
from tests.integration.databases import administer, dropping, url_of


@pytest.fixture
async def empty(server_url: str) -> AsyncIterator[str]:
    """The URL of a database with nothing in it."""
    name = f"rl_{uuid7().hex}"
    await administer(server_url, f"CREATE DATABASE {name}")
    yield url_of(server_url, name)
    await administer(server_url, *dropping(name))


async def _schema(url: str) -> list[tuple[str, str]]:
    """Every object of ours, with the transaction that made it."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        rows = await connection.exec_driver_sql(
            "SELECT relname, xmin::text FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "UNION ALL SELECT oid::regprocedure::text, xmin::text FROM pg_proc "
            "WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
        )
        found = [(str(row["relname"]), str(row["xmin"])) for row in rows.mappings()]
    await engine.dispose()
    return found


async def test_several_that_start_at_once_migrate_once(empty: str) -> None:
    await asyncio.gather(*(upgrade(empty) for _ in range(5)))
    made = await _schema(empty)
    assert {"tasks", "sub_tasks", "task_dependencies"} <= {name for name, _ in made}
    assert len([name for name, _ in made if name.startswith("claim_subtasks(")]) == 1
    await upgrade(empty)
    assert await _schema(empty) == made


async def test_a_migration_that_breaks_off_leaves_nothing_and_is_done_by_the_next(empty: str) -> None:
    engine = create_async_engine(empty, poolclass=NullPool)
    async with engine.begin() as connection:
        # In the way of one of the last tables.
        await connection.exec_driver_sql("CREATE TABLE schedulers (id integer)")
    with pytest.raises(Exception, match="schedulers"):
        await upgrade(empty)
    assert {name for name, _ in await _schema(empty)} <= {"schedulers", "alembic_version", "alembic_version_pkc"}
    async with engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE schedulers")
    await engine.dispose()
    await upgrade(empty)
    assert {"tasks", "schedulers"} <= {name for name, _ in await _schema(empty)}


async def test_attempts_from_before_the_migration_count_for_their_user(empty: str) -> None:
    user_id, task_id, used, unused = (uuid7() for _ in range(4))
    engine = create_async_engine(empty, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade_to, "0020")
        await connection.exec_driver_sql(f"INSERT INTO users (id, name) VALUES ('{user_id}', 'u')")
        await connection.exec_driver_sql(
            "INSERT INTO tasks (id, user_id, title, status, priority) "
            f"VALUES ('{task_id}', '{user_id}', 't', 'PROCESSING', 5)"
        )
        await connection.exec_driver_sql(
            "INSERT INTO execution_logs "
            "(sub_task_id, attempt, task_id, status, start_time, end_time, duration, tokens_used) "
            f"SELECT id, 1, '{task_id}', 'COMPLETED', now(), now(), 1, tokens "
            f"FROM (VALUES ('{used}'::uuid, 5), ('{unused}', 0)) AS v (id, tokens)"
        )
    await upgrade(empty)
    async with engine.connect() as connection:
        rows = await connection.exec_driver_sql("SELECT sub_task_id, user_id FROM execution_logs")
        assert {row.sub_task_id: row.user_id for row in rows} == {used: user_id, unused: None}
    await engine.dispose()


def _upgrade_to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


@pytest.mark.parametrize(
    ("is_made", "why"), [(False, "permission denied for schema public"), (True, "permission denied for table \\w+")]
)
async def test_a_role_that_may_not_make_the_schema_is_told_so_in_one_line(
    empty: str, server_url: str, is_made: bool, why: str
) -> None:
    if is_made:
        await upgrade(empty)
    role = f"rl_{uuid7().hex}"
    await administer(server_url, f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        url = make_url(empty).set(username=role, password="x").render_as_string(hide_password=False)
        with pytest.raises(MigrationError, match=f"{why}; .*GRANT CREATE") as error:
            await upgrade(url)
        assert "\n" not in str(error.value)
    finally:
        await administer(server_url, f"DROP ROLE {role}")
