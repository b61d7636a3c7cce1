"""The table of the MCP servers, on the same metadata as `schema`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from rayloom.db.schema import metadata

mcp_servers = Table(
    "mcp_servers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("transport", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("secrets", Text, nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("health", Text, nullable=False, server_default=text("'unknown'")),
    Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=text("now()")),
    Column("updated_at", TIMESTAMP(timezone=True), nullable=False, server_default=text("now()")),
    Column("off", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
)
