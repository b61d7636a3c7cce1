"""sql.query refuses a role that reaches files, programs or other connections, when it connects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from rayloom.dag.errors import Refused
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.integration.tools.test_postgresql import as_role
from tests.unit.tools.context import make_context

DATABASE, ROLE, ABOVE = "sql_roles", "sql_roles_user", "sql_roles_above"
GROUPS = ("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program")


@pytest.fixture
async def admin(server_url: str) -> AsyncIterator[Any]:
    """A connection of a superuser to a database of its own, in which one role may do nothing yet."""
    plain = server_url.replace("+asyncpg", "")
    server = await asyncpg.connect(plain)
    if not await server.fetchval("select rolsuper from pg_roles where rolname = session_user"):
        await server.close()
        pytest.skip("making such roles takes a superuser: RAYLOOM_TEST_DATABASE_URL names none")
    for role in (ROLE, ABOVE):
        await server.execute(f"create role {role} login password '{role}'")
    await server.execute(f"create database {DATABASE}")
    connection = await asyncpg.connect(plain, database=DATABASE)
    try:
        yield connection
    finally:
        await connection.close()
        await server.execute(f"drop database {DATABASE} with (force)")
        await server.execute(f"drop role {ROLE}; drop role {ABOVE}")
        await server.close()


async def ask(server_url: str, sql: str, role: str = ROLE) -> Any:
    """The rows that a role gets."""
    context = make_context(sql_connections={"db": as_role(server_url, role, DATABASE)})
    return (await call_tool(BUILTINS["sql.query"], {"connection": "db", "sql": sql}, context)).output["rows"]  # type: ignore[call-overload, index]


async def refusal(server_url: str, sql: str = "select 1") -> str:
    with pytest.raises(Refused) as error:
        await ask(server_url, sql)
    assert (error.value.code, error.value.error_class, error.value.retryable) == ("SQL_ROLE_REFUSED", "refused", False)
    assert "CREATE ROLE reader" in error.value.message
    return error.value.message


async def test_plain_role_is_taken(admin: Any, server_url: str) -> None:
    await admin.execute("create table t as select 1 as n")
    await admin.execute(f"grant select on t to {ROLE}; grant pg_read_all_data, pg_monitor to {ROLE}")
    await admin.execute(f"grant {ABOVE} to {ROLE}; alter role {ROLE} createdb createrole")
    assert await ask(server_url, "select n from t") == [[1]]


async def test_superuser_reads_no_file(admin: Any, server_url: str) -> None:
    await admin.execute(f"alter role {ROLE} superuser")
    assert f"the role '{ROLE}' of this connection is a superuser" in await refusal(
        server_url, "select pg_read_file('/etc/passwd')"
    )


@pytest.mark.parametrize("group", GROUPS)
async def test_role_of_a_group_that_reaches_files_or_programs_is_refused(
    admin: Any, server_url: str, group: str
) -> None:
    await admin.execute(f"grant {group} to {ROLE}")
    assert f"is a member of {group}" in await refusal(server_url)


@pytest.mark.parametrize("inherits", ["inherit", "noinherit"])
@pytest.mark.parametrize("group", GROUPS)
async def test_membership_counts_through_another_role_inherited_or_not(
    admin: Any, server_url: str, group: str, inherits: str
) -> None:
    await admin.execute(f"alter role {ROLE} {inherits}; alter role {ABOVE} {inherits}")
    await admin.execute(f"grant {group} to {ABOVE}; grant {ABOVE} to {ROLE}")
    assert f"is a member of {group}" in await refusal(server_url)


async def test_role_that_can_become_a_superuser_is_refused(admin: Any, server_url: str) -> None:
    await admin.execute(f"alter role {ROLE} noinherit; alter role {ABOVE} superuser; grant {ABOVE} to {ROLE}")
    assert f"can become the superuser '{ABOVE}'" in await refusal(
        server_url, f"select set_config('role', '{ABOVE}', true), pg_read_file('/etc/passwd')"
    )


async def test_role_set_at_login_hides_nothing(admin: Any, server_url: str) -> None:
    await admin.execute(f"alter role {ROLE} superuser; alter role {ROLE} set role to {ABOVE}")
    assert "is a superuser" in await refusal(server_url)


async def test_replication_is_refused(admin: Any, server_url: str) -> None:
    await admin.execute(f"alter role {ROLE} replication")
    assert "has REPLICATION" in await refusal(server_url)


@pytest.mark.parametrize(
    "function",
    [
        "pg_read_file(text)",
        "pg_read_binary_file(text)",
        "pg_ls_dir(text)",
        "pg_stat_file(text)",
        "lo_import(text)",
        "lo_export(oid, text)",
    ],
)
async def test_granted_function_of_files_is_refused(admin: Any, server_url: str, function: str) -> None:
    await admin.execute(f"grant execute on function {function} to {ROLE}")
    assert f"can call {function.replace(', ', ',')}" in await refusal(server_url)
    await admin.execute(f"revoke execute on function {function} from {ROLE}")
    assert await ask(server_url, "select 1") == [[1]]


async def test_dblink_writes_nothing_and_is_refused_until_it_is_revoked(admin: Any, server_url: str) -> None:
    await admin.execute("create table t(n integer)")
    await admin.execute(f"grant all on t to {ROLE}; create extension dblink")
    dsn = as_role(server_url, ROLE, DATABASE).replace("+asyncpg", "")
    said = await refusal(server_url, f"select dblink_exec('{dsn}', 'insert into t values (1)')")
    assert "can call dblink" in said
    assert said.count("can call") == 3
    assert await admin.fetchval("select count(*) from t") == 0
    await admin.execute("revoke execute on all functions in schema public from public")
    assert await ask(server_url, "select count(*) from t") == [[0]]
    await admin.execute(f"grant execute on function dblink_get_notify() to {ABOVE}; grant {ABOVE} to {ROLE}")
    assert "can call dblink_get_notify()" in await refusal(server_url)


async def test_privilege_given_later_is_seen_by_the_next_call(admin: Any, server_url: str) -> None:
    assert await ask(server_url, "select 1") == [[1]]
    await admin.execute(f"grant pg_read_server_files to {ROLE}")
    assert "pg_read_server_files" in await refusal(server_url)
