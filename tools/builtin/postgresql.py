"""One read-only statement on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from time import monotonic
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import orjson

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.builtin.database import refuse_writing
from rayloom.tools.builtin.postgresql_role import refuse_mighty
from rayloom.tools.builtin.rows import Rows, SqlLimits, Taker

CONNECT_S: Final = 10.0
MAX_FETCHED_ROWS: Final = 16

# The third is the driver's word for a server that has taken its leave and not hung up yet.
_DRIVER_ERRORS: Final = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, OverflowError, ValueError,
)  # fmt: skip
_FROM_TEXT: Final[Mapping[str, Callable[[str], Any]]] = {
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timetz": time.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
}
_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "name", "uuid", "inet", "cidr", "unknown"})


async def query(url: str, sql: str, params: Sequence[Any] | Mapping[str, Any], limits: SqlLimits) -> Rows:
    """The rows of one statement.

    Raises UserError (``SQL_INVALID``, ``CONNECTION_INVALID``), Refused (``SQL_READ_ONLY``, ``SQL_FORBIDDEN``,
    ``SQL_ROLE_REFUSED``) and Transient (``SQL_TIMEOUT``, ``SQL_UNAVAILABLE``).
    """
    refuse_writing(sql)
    if isinstance(params, Mapping):
        raise UserError("SQL_INVALID", "/params: PostgreSQL takes a list, for $1, $2 …")
    parts = urlsplit(url)
    dsn = urlunsplit(parts._replace(scheme="postgresql"))
    connection: Any = None
    try:
        connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_S,
            # The server stops the statement by itself, also when we are gone.
            server_settings={
                "application_name": "rayloom sql.query",
                "default_transaction_read_only": "on",
                "statement_timeout": str(max(int(limits.timeout_s * 1000), 1)),
                "idle_in_transaction_session_timeout": str(max(int(limits.timeout_s * 1000), 1)),
            },
        )
        await refuse_mighty(connection)
        return await _read(connection, sql, params, limits)
    except RayloomError:
        raise
    except _DRIVER_ERRORS as error:
        raise _named(error, limits) from None
    finally:
        if connection is not None:
            # Not a polite close: it would wait for a server that may not answer.
            connection.terminate()


async def _read(connection: Any, sql: str, params: Sequence[Any], limits: SqlLimits) -> Rows:
    taker = Taker(limits)
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        # Its snapshot taken, the transaction can't be turned into a writing one any more.
        await connection.execute("SELECT 1")
        # The extended protocol takes exactly one statement.
        statement = await connection.prepare(sql)
        types = [parameter.name for parameter in statement.get_parameters()]
        if len(types) != len(params):
            raise UserError("SQL_INVALID", f"/params: the statement takes {len(types)}, and {len(params)} are given")
        cursor = await statement.cursor(*_all_bound(params, types))
        columns = statement.get_attributes()
        documents = {at for at, column in enumerate(columns) if column.type.name in ("json", "jsonb")}
        # A few at a time, and the first alone: what is fetched is held.
        count = 1
        wants_more = True
        # The server's own limit of time begins anew with each fetch.
        deadline = monotonic() + limits.timeout_s
        while wants_more and (found := await _fetched(cursor, count, deadline, limits)):
            wants_more = all(taker.take(_opened(row, documents)) for row in found)
            count = min(count * 2, MAX_FETCHED_ROWS)
    finally:
        # Never committed: before PostgreSQL 16 a read-only transaction may still make and remove large objects.
        await transaction.rollback()
    return Rows(columns=[column.name for column in columns], rows=taker.rows, truncated=taker.truncated)


async def _fetched(cursor: Any, count: int, deadline: float, limits: SqlLimits) -> Sequence[Any]:
    try:
        rows: Sequence[Any] = await cursor.fetch(count, timeout=max(deadline - monotonic(), 0.001))
    except TimeoutError:
        raise _too_long(limits) from None
    return rows


def _opened(row: Sequence[Any], documents: Collection[int]) -> list[Any]:
    """A row whose JSON documents are values and no longer text."""
    return [orjson.loads(value) if at in documents and value is not None else value for at, value in enumerate(row)]


def _all_bound(params: Sequence[Any], types: Sequence[str]) -> list[Any]:
    bound: list[Any] = []
    for value, kind in zip(params, types, strict=True):
        try:
            bound.append(_bound(value, kind))
        except (ArithmeticError, TypeError, ValueError):
            raise UserError("SQL_INVALID", f"/params/{len(bound)}: {value!r:.100} is no {kind}") from None
    return bound


def _bound(value: Json, kind: str) -> Any:
    """A JSON value as the driver wants it for a parameter's type."""
    if value is None:
        return None
    if kind in ("json", "jsonb"):
        return orjson.dumps(value).decode()
    if isinstance(value, list) and kind.endswith("[]"):
        return [_bound(item, kind.removesuffix("[]")) for item in value]
    if isinstance(value, str) and kind in _FROM_TEXT:
        return _FROM_TEXT[kind](value)
    if kind == "numeric" and not isinstance(value, bool | list | dict):
        return Decimal(str(value))
    if kind in _TEXTS and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _too_long(limits: SqlLimits) -> Transient:
    return Transient("SQL_TIMEOUT", f"the statement took longer than {limits.timeout_s:g} s")


def _named(error: Exception, limits: SqlLimits) -> RayloomError:
    message = f"{type(error).__name__}: {str(error)[:1_000]}"
    match error:
        case asyncpg.QueryCanceledError() | asyncpg.IdleInTransactionSessionTimeoutError():
            return _too_long(limits)
        case asyncpg.ReadOnlySQLTransactionError():
            return Refused("SQL_READ_ONLY", str(error))
        case asyncpg.InsufficientPrivilegeError():
            return Refused("SQL_FORBIDDEN", str(error))
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return UserError("CONNECTION_INVALID", "the database refused the connection's user or password")
        case asyncpg.InvalidCatalogNameError():
            return UserError("CONNECTION_INVALID", str(error))
        case (
            asyncpg.PostgresConnectionError()
            | asyncpg.InsufficientResourcesError()
            | asyncpg.OperatorInterventionError()
            | asyncpg.TransactionRollbackError()
            | asyncpg.ConnectionDoesNotExistError()
        ):
            return Transient("SQL_UNAVAILABLE", message)
        case asyncpg.PostgresError() | asyncpg.InterfaceError() | OverflowError() | ValueError():
            # Python's dates don't reach as far as PostgreSQL's: those must be asked for as text.
            return UserError("SQL_INVALID", message)
        case _:
            return Transient("SQL_UNAVAILABLE", f"the database can't be reached: {type(error).__name__}")
