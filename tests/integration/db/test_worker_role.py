"""The role that workers have may do what attempts need, and nothing else."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import Engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.first_rows import prepare_database
from rayloom.cluster.home import Home
from rayloom.cluster.settings import load_settings
from rayloom.dag.log_line import LogLine
from rayloom.dag.references import Outputs
from rayloom.db import attempts, log_lines
from rayloom.db.blobs import BlobStore
from rayloom.db.engine import driver, make_engine
from rayloom.db.files import TaskFiles
from rayloom.db.migrate import WorkerRoleError, ensure_worker_role, missing_grants, upgrade
from rayloom.db.outputs import outputs
from rayloom.db.settings import BlobSettings, DatabaseSettings
from tests.integration.databases import administer, dropping
from tests.integration.db.spine import Spine


@pytest.fixture
async def worker(database: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    """A connection as a worker has it."""
    role = f"rl_worker_{uuid7().hex}"
    url = await ensure_worker_role(database.primary_dsn(), role=role, password="first")
    # A second start gives it a new password and keeps the rest.
    url = await ensure_worker_role(database.primary_dsn(), role=role, password="second")
    assert url is not None
    engine = make_engine(url, pool_size=1, max_overflow=1, name="worker")
    yield engine
    await engine.dispose()
    # Who is no superuser drops only what belongs to a role of its own.
    await administer(
        database.primary_dsn(), f"GRANT {role} TO CURRENT_USER", f"DROP OWNED BY {role}", f"DROP ROLE {role}"
    )


async def test_a_worker_does_its_work(spine: Spine, worker: AsyncEngine, redis: Redis) -> None:
    made = await spine.submit({"a": [], "b": []})
    claimed = await spine.claim(made.task_id, "a", running=False)
    blobs = BlobStore(worker, redis, BlobSettings())
    handed, task_id = claimed["a"], str(made.task_id)
    done = (await spine.claim(made.task_id, "b"))["b"]
    await spine.succeed(done, output=[1])
    assert await attempts.begin(worker, handed.sub_task_id, handed.attempt, "w", "r")
    assert await attempts.report_phase(worker, handed.sub_task_id, handed.attempt, "EXECUTING", "w", "r")
    assert await outputs(worker, blobs, task_id, ["b"], within_s=20) == Outputs(values={"b": [1]})
    await log_lines.append(worker, [LogLine(at=datetime.now(UTC), task_id=task_id, message="said")])
    files = TaskFiles(worker, blobs, task_id)
    for data in (b"first", b"second", b"first", b"second"):
        await files.write("a/b.txt", data, "text/plain")
    assert await files.read("a/b.txt") == b"second"
    assert [file["path"] for file in await files.list()] == ["a/b.txt"]


FORBIDDEN = (
    "SELECT * FROM users",
    "SELECT key_hash FROM api_keys",
    "SELECT * FROM tasks",
    "SELECT original_prompt FROM tasks",
    "SELECT input_context FROM sub_tasks",
    "SELECT input_blob FROM sub_tasks",
    "SELECT * FROM quotas",
    "SELECT * FROM webhooks",
    "SELECT callback_secret FROM tasks",
    "SELECT config FROM tools",
    "SELECT name FROM mcp_servers",
    "SELECT * FROM idempotency_keys",
    "SELECT * FROM task_events",
    "SELECT message FROM log_lines",
    "SELECT stdout FROM execution_logs",
    "SELECT * FROM schedulers",
    "SELECT * FROM task_dependencies",
    "SELECT * FROM dead_letters",
    "UPDATE dead_letters SET status = 'open'",
    "SELECT retry_subtasks(ARRAY[gen_random_uuid()], '')",
    "SELECT discard_letters(ARRAY[gen_random_uuid()])",
    "INSERT INTO users (id, name) VALUES (gen_random_uuid(), 'me')",
    "INSERT INTO api_keys (id, user_id, role, key_hash) SELECT gen_random_uuid(), gen_random_uuid(), 'admin', 'x'",
    "INSERT INTO task_events (task_id, kind) VALUES (gen_random_uuid(), 'task')",
    "INSERT INTO execution_logs (sub_task_id) VALUES (gen_random_uuid())",
    "UPDATE sub_tasks SET status = 'COMPLETED', output_result = '1'",
    "UPDATE sub_tasks SET attempt = attempt + 1",
    "UPDATE tasks SET status = 'COMPLETED'",
    "UPDATE quotas SET max_tokens = NULL",
    "UPDATE blobs SET data = ''",
    "UPDATE blobs SET place = 's3://mine', data = NULL",
    "UPDATE log_lines SET message = 'nothing'",
    "DELETE FROM blobs",
    "DELETE FROM task_files",
    "DELETE FROM log_lines",
    "DELETE FROM tasks",
    "DELETE FROM task_events",
    "TRUNCATE task_events",
    "SELECT task_result(gen_random_uuid()) FROM tasks",
    "TRUNCATE sub_tasks",
    "SELECT claim_subtasks('{}', '{}', gen_random_uuid(), 1)",
    "SELECT end_task(gen_random_uuid(), 'CANCELLED', NULL, '')",
    "SELECT claim_tasks(1, gen_random_uuid(), '{}')",
    "SELECT recover_leases('{}'::uuid[], 1), recover_leases(ARRAY[gen_random_uuid()], 1)",
    "SELECT requeue_due(1)",
    "SELECT release_leases(ARRAY[gen_random_uuid()], ARRAY[1])",
    "SELECT unclaim_subtasks(ARRAY[gen_random_uuid()], ARRAY[1], gen_random_uuid())",
    "SELECT lock_tasks_of(ARRAY[gen_random_uuid()])",
    "SELECT block_subtasks(ARRAY[gen_random_uuid()])",
    "SELECT close_tasks(ARRAY[gen_random_uuid()], 1)",
    "CREATE TABLE mine (x integer)",
    "CREATE FUNCTION mine() RETURNS void LANGUAGE sql AS ''",
    "CREATE SCHEMA mine",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "ALTER TABLE sub_tasks DISABLE TRIGGER ALL",
    "DROP TABLE sub_tasks",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "SELECT pg_read_file('/etc/passwd')",
    "COPY blobs TO PROGRAM 'cat'",
    "SELECT rolpassword FROM pg_authid",
    "SELECT lo_import('/etc/passwd')",
)


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_what_a_worker_may_not_do(worker: AsyncEngine, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with driver(worker) as connection:
            await connection.execute(statement)


async def test_a_worker_can_not_slip_tables_of_its_own_under_the_functions_of_the_owner(
    spine: Spine, worker: AsyncEngine
) -> None:
    made = await spine.submit({"a": []})
    handed = (await spine.claim(made.task_id, running=False))["a"]
    async with driver(worker) as connection:
        for table in ("tasks", "sub_tasks", "task_events"):
            await connection.execute(
                f"CREATE TEMP TABLE {table} (id uuid, parent_id uuid, status text, attempt integer)"
            )
        assert await connection.fetchval("SELECT begin_attempt($1::uuid, 1, 'w', 'r')", handed.sub_task_id)
    assert await spine.statuses(made.task_id) == {"a": "RUNNING"}


async def test_a_role_that_somebody_made_is_told_what_it_lacks(
    database: DatabaseSettings, worker: AsyncEngine, tmp_path: Path
) -> None:
    url = worker.url.render_as_string(hide_password=False)
    assert await missing_grants(url) == []
    assert await missing_grants(database.primary_dsn()) == []
    role = worker.url.username
    # As a role of the release before has it.
    await administer(
        database.primary_dsn(),
        f"REVOKE SELECT (output_blob, output_size) ON sub_tasks FROM {role}",
        f"REVOKE UPDATE (touched_at) ON blobs FROM {role}",
    )
    lacks = [
        "GRANT SELECT (id, parent_id, key, status, attempt, output_result, stand_in, output_blob, output_size) "
        f"ON sub_tasks TO {role}",
        f"GRANT SELECT, INSERT, UPDATE (touched_at) ON blobs TO {role}",
    ]
    assert await missing_grants(url) == lacks
    given = database.model_copy(update={"worker_url": SecretStr(url)})
    with pytest.raises(StartRefused) as told:
        await prepare_database(load_settings(environ={"RAYLOOM_HOME": str(tmp_path)}), Home(tmp_path), given)
    assert str(told.value).endswith("; ".join(lacks))
    await administer(database.primary_dsn(), *lacks)
    assert await missing_grants(url) == []


async def test_a_role_that_may_make_no_roles_is_told_so(worker: AsyncEngine) -> None:
    url = worker.url.render_as_string(hide_password=False)
    assert await ensure_worker_role(url, role="rl_nobody", password="x") is None


async def test_it_is_made_and_renewed_by_who_is_no_superuser(database: DatabaseSettings) -> None:
    ours, theirs, name = f"rl_{uuid7().hex}", f"rl_worker_{uuid7().hex}", f"rl_{uuid7().hex}"
    await administer(
        database.primary_dsn(),
        f"CREATE ROLE {ours} LOGIN CREATEROLE CREATEDB PASSWORD 'ours'",
        f"GRANT {ours} TO CURRENT_USER",
        f"CREATE DATABASE {name} OWNER {ours}",
    )
    url = make_url(database.primary_dsn()).set(username=ours, password="ours", database=name)
    as_ours = url.render_as_string(hide_password=False)
    try:
        await upgrade(as_ours)
        for password in ("first", "second"):
            assert await ensure_worker_role(as_ours, role=theirs, password=password)
            plain = url.set(drivername="postgresql", username=theirs, password=password)
            connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
            await connection.close()
    finally:
        await administer(
            database.primary_dsn(),
            *dropping(name),
            f"DROP ROLE IF EXISTS {theirs}",
            f"DROP OWNED BY {ours}",
            f"DROP ROLE {ours}",
        )


async def test_the_password_is_in_no_statement_and_in_no_error(database: DatabaseSettings) -> None:
    sent: list[str] = []
    password = uuid7().hex

    def keep(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", keep)
    try:
        with pytest.raises(WorkerRoleError, match="reserved") as caught:
            await ensure_worker_role(database.primary_dsn(), role="pg_rayloom", password=password)
    finally:
        event.remove(Engine, "before_cursor_execute", keep)
    assert [each for each in sent if each.startswith("CREATE ROLE")], "it got as far as the password"
    assert not [each for each in sent if password in each]
    told = "".join(traceback.format_exception(caught.value))
    assert password not in told
    assert "SCRAM" not in told


async def test_nobody_is_let_in_by_another_password(worker: AsyncEngine) -> None:
    url = worker.url.set(drivername="postgresql", password="first").render_as_string(hide_password=False)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url)


@pytest.mark.parametrize(("role", "password"), [("a;b", "x"), ("a", "it's"), ("", "x")])
async def test_words_that_would_have_to_be_quoted_are_refused(
    database: DatabaseSettings, role: str, password: str
) -> None:
    with pytest.raises(ValueError, match="plain letters"):
        await ensure_worker_role(database.primary_dsn(), role=role, password=password)
