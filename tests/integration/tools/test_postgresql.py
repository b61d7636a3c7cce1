"""sql.query on a real PostgreSQL: it reads, and only reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.unit.tools.context import make_context

Ask = Callable[..., Any]

SETUP = """
drop table if exists sql_tool;
create table sql_tool(
    n integer primary key, at timestamptz, cost numeric, data jsonb, raw bytea, key uuid, tags text[]
);
insert into sql_tool values
    (1, '2024-01-02 03:04:05+00', 1.10, '{"a": [1]}', '\\xff', '00000000-0000-0000-0000-000000000001', '{x,y}'),
    (2, null, null, null, null, null, null);
"""


READER = "sql_tool_reader"
# It may write: what holds here is that the tool only reads.
READER_SETUP = f"""
drop role if exists {READER};
create role {READER} login password '{READER}';
grant all on sql_tool to {READER};
grant create on schema public to {READER};
"""


@pytest.fixture
async def ask(server_url: str) -> AsyncIterator[Ask]:
    plain = server_url.replace("+asyncpg", "")
    connection = await asyncpg.connect(plain)
    await connection.execute(SETUP + READER_SETUP)
    reader_url = as_role(server_url, READER)

    async def ask(sql: str, *params: Json, **settings: Any) -> Any:
        context = make_context(**{"sql_connections": {"db": reader_url}, **settings})
        input: dict[str, Json] = {"connection": "db", "sql": sql, "params": list(params)}
        return (await call_tool(BUILTINS["sql.query"], input, context)).output

    yield ask
    await connection.execute(f"drop table if exists sql_tool; drop owned by {READER}; drop role {READER}")
    await connection.close()


def as_role(url: str, role: str, database: str = "") -> str:
    """The same server for a role whose password is its name."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{role}@{place}", path=f"/{database}" if database else parts.path))


async def test_values_of_every_kind(ask: Ask) -> None:
    output = await ask("select * from sql_tool order by n limit 1")
    assert output["columns"] == ["n", "at", "cost", "data", "raw", "key", "tags"]
    assert output["rows"] == [
        [
            1,
            "2024-01-02T03:04:05+00:00",
            1.1,
            {"a": [1]},
            "/w==",
            "00000000-0000-0000-0000-000000000001",
            ["x", "y"],
        ]
    ]


async def test_sums_and_averages_are_numbers(ask: Ask) -> None:
    output = await ask("select sum(n::bigint), avg(n), avg(n::float), sum(n * 10000000000000001) from sql_tool")
    assert output["rows"] == [[3, 1.5, 1.5, "30000000000000003"]]


async def test_parameters_take_what_json_can_say(ask: Ask) -> None:
    sql = (
        "select n from sql_tool where n = $1 and at = $2::timestamptz and cost = $3 and data @> $4::jsonb "
        "and key = $5 and tags = $6 and n::text = $7"
    )
    given = [1, "2024-01-02T03:04:05Z", 1.1, {"a": [1]}, "00000000-0000-0000-0000-000000000001", ["x", "y"], 1]
    assert (await ask(sql, *given))["rows"] == [[1]]


@pytest.mark.parametrize(
    ("sql", "rows"), [("show server_encoding", [["UTF8"]]), ("values (1)", [[1]]), ("table sql_tool limit 0", [])]
)
async def test_other_statements_that_read(ask: Ask, sql: str, rows: Json) -> None:
    assert (await ask(sql))["rows"] == rows


async def test_rows_are_limited_and_not_all_fetched(ask: Ask) -> None:
    output = await ask("select generate_series(1, 1000000000)", sql_max_rows=3)
    assert (output["rows"], output["truncated"]) == ([[1], [2], [3]], True)


async def test_no_more_is_fetched_than_there_is_room_for(ask: Ask) -> None:
    """The rows are some 100 kB each, and the 20th could not be had at all."""
    output = await ask(
        "select 1 / (20 - n), repeat('x', 100000) from generate_series(1, 1000) n", sql_max_bytes=350_000
    )
    assert ([row[0] for row in output["rows"]], output["truncated"]) == ([0, 0, 0], True)
    exact = await ask("select n from generate_series(1, 40) n", sql_max_rows=40)
    assert (exact["rows"], exact["truncated"]) == ([[n] for n in range(1, 41)], False)


@pytest.mark.parametrize(
    ("sql", "param"),
    [
        ("select $1::numeric", "abc"),
        ("select $1::numeric[]", ["1", "x"]),
        ("select $1::date", "tomorrow"),
        ("select $1::jsonb", "\ud800"),
        ("select $1::text", "\ud800"),
        ("select $1::int", 2**70),
        ("select $1::int", "1"),
        ("select $1::timestamptz", "0001-01-01T00:00:00+23:59"),
        ("select $1::text::timestamp", "4000-01-01 BC"),
        ("select $1::text::json", "[" * 300 + "]" * 300),
        ("select $1::text::json", "[" * 900 + "]" * 900),
    ],
)
async def test_values_that_do_not_fit_are_their_author_s_fault(ask: Ask, sql: str, param: Json) -> None:
    with pytest.raises(UserError) as error:
        await ask(sql, param)
    assert error.value.code in ("SQL_INVALID", "OUTPUT_TOO_DEEP")
    assert "decimal." not in error.value.message


@pytest.mark.parametrize(
    "sql",
    [
        "insert into sql_tool values (9)",
        "with x as (insert into sql_tool values (9) returning n) select * from x",
        "with x as (select set_config('transaction_read_only', 'off', false)) select * from x",
        "select n into sql_tool_copy from sql_tool",
        "explain analyze delete from sql_tool",
        "select * from sql_tool for update",
        "copy sql_tool to program 'true'",
        "do $$ begin delete from sql_tool; end $$",
        "set transaction read write",
        "commit",
    ],
)
async def test_what_is_more_than_reading_is_refused(ask: Ask, sql: str) -> None:
    with pytest.raises((Refused, UserError)):
        await ask(sql)
    assert (await ask("select count(*) from sql_tool"))["rows"] == [[2]]


async def test_a_large_object_is_refused_or_leaves_nothing(ask: Ask) -> None:
    """PostgreSQL refuses it since 16; before, only the rollback undoes it."""
    with suppress(Refused, UserError):
        await ask("select lo_create(0)")
    assert (await ask("select count(*) from pg_largeobject_metadata"))["rows"] == [[0]]


@pytest.mark.parametrize(
    "sql", ["select 1; select 2", "select 1; delete from sql_tool", "select", "select * from nothing", "select $1::int"]
)
async def test_what_is_no_statement(ask: Ask, sql: str) -> None:
    with pytest.raises(UserError):
        await ask(sql + " " if sql == "select" else sql, *([1] if sql == "select" else []))
    assert (await ask("select count(*) from sql_tool"))["rows"] == [[2]]


async def test_a_slow_statement_is_stopped_by_the_server(ask: Ask) -> None:
    with pytest.raises(Transient) as error:
        await ask("select pg_sleep(60)", sql_timeout_s=0.2)
    assert error.value.code == "SQL_TIMEOUT"


async def test_a_statement_whose_rows_come_slowly_has_one_limit_of_time_for_all(ask: Ask) -> None:
    with pytest.raises(Transient) as error:
        await ask("select pg_sleep(0.02)::text from generate_series(1, 900)", sql_timeout_s=0.5)
    assert error.value.code == "SQL_TIMEOUT"


async def test_a_cancelled_statement_leaves_its_connection(ask: Ask) -> None:
    running = asyncio.ensure_future(ask("select pg_sleep(60) /* to be cancelled */"))
    mine = (
        "select count(*) from pg_stat_activity where query like '%to be ' || 'cancelled%' and pid <> pg_backend_pid()"
    )
    while (await ask(mine))["rows"] == [[0]]:
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_our_own_database_is_refused(ask: Ask, server_url: str) -> None:
    with pytest.raises(Refused, match="own database"):
        await ask("select 1", sql_forbidden_urls=(server_url,))


async def test_a_server_that_is_not_there_is_transient(ask: Ask) -> None:
    with pytest.raises(Transient) as error:
        await ask("select 1", sql_connections={"db": "postgresql://u:p@127.0.0.1:1/x"})
    assert error.value.code == "SQL_UNAVAILABLE"
