"""The ledger of the calls of models, and limits of keys. The migration is the truth; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    ScalarSelect,
    Table,
    Uuid,
    cast,
    func,
    select,
    text,
)

from rayloom.db.columns import at_column, count_column, flag_column, metadata, text_column
from rayloom.db.schema import execution_logs

model_calls = Table(
    "model_calls",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("key_id", Uuid),
    Column("task_id", Uuid),
    Column("sub_task_id", Uuid),
    count_column("attempt"),
    text_column("model", nullable=False),
    text_column("purpose", nullable=False),
    Column("reserved_tokens", BigInteger, nullable=False),
    Column("reserved_usd", Double, nullable=False),
    count_column("tokens_in", big=True),
    count_column("tokens_out", big=True),
    Column("cost_usd", Double, nullable=False, server_default=text("0")),
    flag_column("is_estimated"),
    count_column("least_in", big=True),
    count_column("least_out", big=True),
    Column("least_usd", Double, nullable=False, server_default=text("0")),
    text_column("status", nullable=False),
    at_column("reserved_at", nullable=False, default="now()"),
    at_column("expires_at", nullable=False),
    at_column("settled_at"),
)
Index("ix_model_calls_user_id", model_calls.c.user_id, model_calls.c.reserved_at)
Index(
    "ix_model_calls_sub_task_id",
    model_calls.c.sub_task_id,
    model_calls.c.attempt,
    postgresql_where=text("sub_task_id IS NOT NULL"),
)
# The calls that planned a task.
Index(
    "ix_model_calls_task_id",
    model_calls.c.task_id,
    postgresql_where=text("task_id IS NOT NULL AND sub_task_id IS NULL"),
)
Index("ix_model_calls_open", model_calls.c.expires_at, postgresql_where=text("status = 'reserved'"))
Index("ix_model_calls_settled_at", model_calls.c.settled_at, postgresql_where=text("settled_at IS NOT NULL"))

limit_alerts = Table(
    "limit_alerts",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    text_column("level", nullable=False),
    Column("owner_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    text_column("limit_name", nullable=False),
    Column("share", Double, nullable=False),
    at_column("at", nullable=False, default="now()"),
    at_column("over_at"),
)
Index(
    "uq_limit_alerts_open",
    limit_alerts.c.level,
    limit_alerts.c.owner_id,
    limit_alerts.c.limit_name,
    unique=True,
    postgresql_where=text("over_at IS NULL"),
)
Index("ix_limit_alerts_user_id", limit_alerts.c.user_id, limit_alerts.c.at)

granting_ahead = Table(
    "granting_ahead",
    metadata,
    Column("is_row", Boolean, primary_key=True, server_default=text("true")),
    at_column("began_at", nullable=False, default="now()"),
)

key_totals = Table(
    "key_totals",
    metadata,
    Column("key_id", Uuid, primary_key=True),
    count_column("tokens_used", big=True),
    Column("cost_usd", Double, nullable=False, server_default=text("0")),
)

key_quotas = Table(
    "key_quotas",
    metadata,
    Column("key_id", Uuid, ForeignKey("api_keys.id"), primary_key=True),
    Column("max_tokens", BigInteger),
    Column("max_cost_usd", Double),
    Column("tokens_per_min", BigInteger),
    Column("requests_per_min", Integer),
    Column("max_concurrent", Integer),
    at_column("updated_at", nullable=False, default="now()"),
)


def model_tokens() -> ScalarSelect[int]:
    """What models used in an attempt of ``execution_logs``, whose own count is that of its tool."""
    used = func.coalesce(func.sum(model_calls.c.tokens_in + model_calls.c.tokens_out), 0)
    return (
        select(cast(used, BigInteger))
        .where(
            model_calls.c.sub_task_id == execution_logs.c.sub_task_id, model_calls.c.attempt == execution_logs.c.attempt
        )
        .scalar_subquery()
    )
