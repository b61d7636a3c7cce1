"""Whose fault an error of the database is."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from rayloom.db.engine import is_exhausted, is_refusal, is_unavailable


def _error(sqlstate: str) -> asyncpg.PostgresError:
    error = asyncpg.PostgresError.new({"C": sqlstate, "M": "it said so"})
    assert isinstance(error, asyncpg.PostgresError)
    return error


REFUSED = ["22P02", "22021", "22P05", "22003", "23514", "23502", "54000", "54001"]
AWAY = [
    "08006", "25006", "25P03", "25P04", "40001", "40P01", "53100", "53200", "53300", "55P03", "57014", "57P01",
    "57P02", "57P03", "57P05", "58000", "58030", "58P01", "XX000", "XX001",
]  # fmt: skip
WRONG = ["42P01", "42501", "42883", "0A000"]


@pytest.mark.parametrize("sqlstate", REFUSED + AWAY + WRONG)
def test_only_data_are_refused_and_only_the_database_is_away(sqlstate: str) -> None:
    error = _error(sqlstate)
    assert is_refusal(error) == (sqlstate in REFUSED)
    assert is_unavailable(error) == (sqlstate in AWAY)
    wrapped: Any = DBAPIError("SELECT", None, error)
    assert is_unavailable(wrapped) == (sqlstate in AWAY)
    assert is_exhausted(error) == is_exhausted(wrapped) == (sqlstate in ("53100", "53300"))


@pytest.mark.parametrize(
    "error",
    [asyncpg.DataError("invalid input for query argument"), UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
     OverflowError("too large"), TypeError("no int"), ValueError("NUL")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_driver_cannot_encode_is_refused(error: Exception) -> None:
    assert is_refusal(error)
    assert not is_unavailable(error)


@pytest.mark.parametrize(
    "error",
    [asyncpg.InterfaceError("connection is closed"), OSError("reset"), asyncpg.InternalClientError("out of step")],
    ids=lambda error: type(error).__name__,
)
def test_what_the_connection_does_is_nobodys_refusal(error: Exception) -> None:
    assert not is_refusal(error)
    assert is_unavailable(error)
