"""sql.query on SQLite: it reads, and only reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.builtin.database import refuse_own, refuse_writing
from rayloom.tools.builtin.rows import as_json
from rayloom.tools.call import call_tool
from tests.unit.tools.context import make_context

Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    path = tmp_path / "a b.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "create table t(n integer, s text, b blob); insert into t values (1,'x',x'ff'),(2,'y',null)"
        )
    urls = {
        "db": f"sqlite:///{path}",
        "gone": f"sqlite:///{tmp_path}/gone.db",
        "odd": "mysql://x/y",
        "rel": "sqlite:x.db",
    }

    async def ask(sql: str, params: Json = None, connection: str = "db", **settings: Any) -> Any:
        input: dict[str, Json] = {"connection": connection, "sql": sql, "params": [] if params is None else params}
        return (await call_tool(BUILTINS["sql.query"], input, make_context(sql_connections=urls, **settings))).output

    return ask


async def test_rows_and_columns(ask: Ask) -> None:
    assert await ask("select n, s, b from t order by n") == {
        "columns": ["n", "s", "b"],
        "rows": [[1, "x", "/w=="], [2, "y", None]],
        "truncated": False,
    }


async def test_parameters_by_place_and_by_name(ask: Ask) -> None:
    assert (await ask("select s from t where n = ?", [2]))["rows"] == [["y"]]
    assert (await ask("select s from t where n = :n", {"n": 1}))["rows"] == [["x"]]


async def test_rows_and_bytes_are_limited(ask: Ask) -> None:
    assert await ask("select n from t", sql_max_rows=1) == {"columns": ["n"], "rows": [[1]], "truncated": True}
    assert await ask("select printf('%.1000c', 'x')", sql_max_bytes=100) == {
        "columns": ["printf('%.1000c', 'x')"],
        "rows": [],
        "truncated": True,
    }


async def test_no_more_is_fetched_than_there_is_room_for(ask: Ask) -> None:
    """The rows are some 100 kB each, and the 20th could not be had at all."""
    sql = (
        "with recursive r(n) as (select 1 union all select n + 1 from r limit 1000) "
        "select case when n = 20 then abs(-9223372036854775808) else 0 end, printf('%.100000c', 'x') from r"
    )
    output = await ask(sql, sql_max_bytes=350_000)
    assert ([row[0] for row in output["rows"]], output["truncated"]) == ([0, 0, 0], True)


async def test_a_value_may_be_larger_than_what_is_given_but_not_without_end(ask: Ask) -> None:
    assert (await ask("select hex(substr(zeroblob(16777216), 1, 2))"))["rows"] == [["0000"]]
    assert await ask("select zeroblob(8388608)") == {"columns": ["zeroblob(8388608)"], "rows": [], "truncated": True}
    with pytest.raises(UserError, match="too big"):
        await ask("select length(zeroblob(16777217))")


@pytest.mark.parametrize(
    "sql",
    [
        "insert into t values (3, 'z', null)",
        "update t set n = 0",
        "delete from t",
        "drop table t",
        "create table u(x)",
        "create temp table u(x)",
        "attach database ':memory:' as m",
        "attach database 'file:/etc/passwd?mode=ro' as m",
        "pragma journal_mode = delete",
        "pragma writable_schema = 1",
        "vacuum into '/tmp/never-written.db'",
        "select load_extension('/tmp/x')",
        "with x as (select 1) insert into t select 1, 2, 3 from x",
        "begin immediate",
    ],
)
async def test_what_is_more_than_reading_is_refused(ask: Ask, sql: str) -> None:
    with pytest.raises(Refused) as error:
        await ask(sql)
    assert error.value.code == "SQL_READ_ONLY"
    assert len((await ask("select * from t"))["rows"]) == 2


@pytest.mark.parametrize(
    "sql", ["select 1; select 2", "select 1; drop table t", "selec 1", "", "select * from nothing"]
)
async def test_one_good_statement_at_a_time(ask: Ask, sql: str) -> None:
    with pytest.raises(UserError):
        await ask(sql)


async def test_a_statement_without_end_is_stopped(ask: Ask) -> None:
    endless = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"
    with pytest.raises(Transient) as error:
        await ask(endless, sql_timeout_s=0.1)
    assert error.value.code == "SQL_TIMEOUT"


@pytest.mark.parametrize("connection", ["nobody", "gone", "odd", "rel"])
async def test_connections_that_are_none(ask: Ask, connection: str) -> None:
    with pytest.raises(UserError) as error:
        await ask("select 1", connection=connection)
    assert error.value.code.startswith("CONNECTION_")


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (Decimal("1.10"), 1.1),
        (Decimal("300"), 300),
        (Decimal("3.00"), 3),
        (Decimal("1.6666666666666667"), 1.6666666666666667),
        (Decimal("0.12345678901234567890"), "0.12345678901234567890"),
        (Decimal(2**53), 2**53),
        (Decimal(2**53 + 1), str(2**53 + 1)),
        (Decimal("9007199254740991.5"), "9007199254740991.5"),
        (Decimal("1E+131071"), "1E+131071"),
        (Decimal("1E-400"), "1E-400"),
        (Decimal("NaN"), "NaN"),
        (Decimal("-Infinity"), "-Infinity"),
        (date(2024, 1, 2), "2024-01-02"),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02T03:04:05+00:00"),
        (timedelta(minutes=1), 60.0),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\xff", "/w=="),
        (float("nan"), None),
        (float("inf"), None),
        (2**60, str(2**60)),
        (True, True),
        ([Decimal(1), None], [1, None]),
        ({"a": b""}, {"a": ""}),
    ],
)
def test_values_become_json(value: object, json: Json) -> None:
    found = as_json(value)
    assert (found, type(found)) == (json, type(json))


@pytest.mark.parametrize(
    "sql",
    [
        "select 1",
        " (select 1)",
        "-- note\nSELECT 1",
        "/* a */ with x as (select 1) table x",
        "values (1)",
        "EXPLAIN select 1",
    ],
)
def test_statements_that_begin_with_reading(sql: str) -> None:
    refuse_writing(sql)


@pytest.mark.parametrize(
    "sql",
    ["copy t to program 'sh'", "do $$ begin end $$", "/* select */ call p()", "set x = 1", "", "--select 1", "begin"],
)
def test_statements_that_begin_with_anything_else(sql: str) -> None:
    with pytest.raises(Refused):
        refuse_writing(sql)


OWN = "postgresql+asyncpg://rayloom:secret@127.0.0.1:5433/rayloom"


@pytest.mark.parametrize(
    "url",
    [
        OWN,
        "postgresql://other:pw@localhost:5433/rayloom",
        "postgres://[::1]:5433/rayloom?sslmode=disable",
        "postgresql://u@127.0.0.2:5433/rayloom",
        "postgresql://u@/rayloom?host=/tmp/sockets&port=5433",
        "postgresql:///rayloom?host=localhost&port=5433",
        "postgresql://rayloom@localhost:5433",
        "postgresql://u@localhost:5433/ray%6Coom",
    ],
)
async def test_our_own_database_is_out_of_bounds_however_it_is_spelt(url: str) -> None:
    with pytest.raises(Refused) as error:
        await refuse_own(url, [OWN])
    assert error.value.code == "CONNECTION_REFUSED"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@localhost:5432/rayloom",
        "postgresql://u@localhost:5433/other",
        "postgresql://u@10.0.0.1:5433/rayloom",
    ],
)
async def test_other_databases_are_not_ours(url: str) -> None:
    await refuse_own(url, [OWN])
