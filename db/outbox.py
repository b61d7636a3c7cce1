"""The table of the webhooks that are to be told, as `schema` has the others."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Table, Uuid, text

from rayloom.db.columns import at_column as _at
from rayloom.db.columns import count_column as _count
from rayloom.db.columns import json_column as _json
from rayloom.db.columns import metadata
from rayloom.db.columns import text_column as _text

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("task_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Uuid, nullable=False),
    _text("task_status", nullable=False),
    _at("at", nullable=False),
    _json("result"),
    _json("error"),
    _text("status", nullable=False, default="pending"),
    _count("attempts"),
    _at("next_at", nullable=False, default="now()"),
    _text("last_error"),
    _at("delivered_at"),
    _at("unresolved_since"),
)
Index("ix_webhooks_task_id", webhooks.c.task_id, webhooks.c.id)
Index("ix_webhooks_due", webhooks.c.next_at, postgresql_where=text("status = 'pending'"))
Index("ix_webhooks_user_id", webhooks.c.user_id, webhooks.c.id)
