"""The kinds of columns that the tables of ``schema`` have, and what all those tables belong to."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

metadata = MetaData()


def at_column(name: str, *, nullable: bool = True, default: str | None = None) -> Column[object]:
    """A moment, with its time zone."""
    server_default = None if default is None else text(default)
    return Column(name, TIMESTAMP(timezone=True), nullable=nullable, server_default=server_default)


def json_column(name: str, *, nullable: bool = True, default: str | None = None) -> Column[object]:
    """A JSON document. ``none_as_null``: an absent result is SQL NULL, never a JSON null."""
    server_default = None if default is None else text(f"'{default}'::jsonb")
    return Column(name, JSONB(none_as_null=True), nullable=nullable, server_default=server_default)


def text_column(name: str, *, nullable: bool = True, default: str | None = None) -> Column[str]:
    """A text."""
    server_default = None if default is None else text(f"'{default}'::text")
    return Column(name, Text, nullable=nullable, server_default=server_default)


def count_column(name: str, *, big: bool = False) -> Column[int]:
    """A number that counts up from 0."""
    return Column(name, BigInteger if big else Integer, nullable=False, server_default=text("0"))


def flag_column(name: str) -> Column[bool]:
    """Yes or no, and no where nobody says."""
    return Column(name, Boolean, nullable=False, server_default=text("false"))
