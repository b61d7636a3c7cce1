"""The table of the breakers, on the same metadata as `schema`."""

from __future__ import annotations

from sqlalchemy import Column, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import TIMESTAMP

from rayloom.db.schema import metadata

breakers = Table(
    "breakers",
    metadata,
    Column("key", Text, primary_key=True),
    Column("retry_at", TIMESTAMP(timezone=True)),
    Column("openings", Integer, nullable=False),
    Column("opened_at", TIMESTAMP(timezone=True), nullable=False, server_default=text("now()")),
)
