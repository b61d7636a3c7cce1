"""The tables as SQLAlchemy sees them: what statements are built from.

The migrations are the truth about the schema; a test holds this file against a migrated database. CHECK constraints,
triggers and functions stand only there.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from rayloom.db.columns import at_column as _at
from rayloom.db.columns import count_column as _count
from rayloom.db.columns import flag_column as _flag
from rayloom.db.columns import json_column as _json
from rayloom.db.columns import metadata as metadata
from rayloom.db.columns import text_column as _text
from rayloom.db.outbox import webhooks as webhooks

LIVE_TASK = "status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING')"


users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("name", nullable=False),
    _at("created_at", nullable=False, default="now()"),
    UniqueConstraint("name", name="uq_users_name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    _text("role", nullable=False),
    Column("key_hash", LargeBinary, nullable=False),
    _json("tools"),
    _text("max_level"),
    _at("created_at", nullable=False, default="now()"),
    _at("revoked_at"),
    UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
)

quotas = Table(
    "quotas",
    metadata,
    Column("user_id", Uuid, ForeignKey("users.id"), primary_key=True),
    Column("max_tokens", BigInteger),
    Column("max_cost_usd", Double),
    Column("tokens_per_min", BigInteger),
    Column("requests_per_min", Integer),
    Column("max_concurrent", Integer),
    _at("updated_at", nullable=False, default="now()"),
)
totals = Table(
    "token_totals",
    metadata,
    Column("user_id", Uuid, primary_key=True),
    _count("tokens_used", big=True),
    Column("cost_usd", Double, nullable=False, server_default=text("0")),
)

tools = Table(
    "tools",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("name", nullable=False),
    _text("description", nullable=False, default=""),
    _text("version", nullable=False, default="1"),
    _json("schema", nullable=False),
    _json("output_schema"),
    _text("endpoint", nullable=False),
    _text("type", nullable=False),
    _json("config", nullable=False, default="{}"),
    _json("resources", nullable=False, default="{}"),
    _text("lane", nullable=False, default="own"),
    _text("permission_level", nullable=False),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("built_in", Boolean, nullable=False, server_default=text("false")),
    _at("created_at", nullable=False, default="now()"),
    _at("updated_at", nullable=False, default="now()"),
    Column("server", Text, ForeignKey("mcp_servers.name", name="fk_tools_server", ondelete="CASCADE")),
    UniqueConstraint("name", name="uq_tools_name"),
    Index("ix_tools_server", "server", postgresql_where=text("server IS NOT NULL")),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    _text("title", nullable=False),
    _text("original_prompt"),
    _text("status", nullable=False),
    Column("priority", SmallInteger, nullable=False),
    _json("context", nullable=False, default="{}"),
    _json("options", nullable=False, default="{}"),
    _json("labels", nullable=False, default="{}"),
    _json("plan"),
    _json("plan_meta"),
    _json("result"),
    _flag("result_apart"),
    _json("error"),
    _count("subtask_count"),
    _count("open_count"),
    _count("blocked_count"),
    _count("tokens_used", big=True),
    Column("cost_usd", Double, nullable=False, server_default=text("0")),
    Column("incarnation", Uuid),
    Column("api_key_id", Uuid),
    _at("deadline_at"),
    _at("created_at", nullable=False, default="now()"),
    _at("started_at"),
    _at("finished_at"),
    _text("callback_url"),
    _text("callback_secret"),
    _at("held_at"),
    _text("growth"),
    Column("replans_left", SmallInteger, nullable=False, server_default=text("0")),
)
_newest_first = (tasks.c.created_at.desc(), tasks.c.id.desc())
Index("ix_tasks_user_id_created_at", tasks.c.user_id, *_newest_first)
Index("ix_tasks_user_id_status_created_at", tasks.c.user_id, tasks.c.status, *_newest_first)
Index("ix_tasks_created_at", *_newest_first)
Index(
    "ix_tasks_live",
    tasks.c.status,
    tasks.c.priority.desc(),
    tasks.c.created_at,
    postgresql_where=text(LIVE_TASK),
)
Index("ix_tasks_deadline", tasks.c.deadline_at, postgresql_where=text(f"deadline_at IS NOT NULL AND {LIVE_TASK}"))
Index("ix_tasks_held", tasks.c.held_at, postgresql_where=text("held_at IS NOT NULL"))
Index("ix_tasks_growth", tasks.c.priority.desc(), tasks.c.created_at, postgresql_where=text("growth IS NOT NULL"))

sub_tasks = Table(
    "sub_tasks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("parent_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Uuid, nullable=False),
    _text("key", nullable=False),
    _text("name", nullable=False),
    _text("task_type", nullable=False),
    _text("status", nullable=False),
    _text("phase"),
    Column("execution_order", Integer, nullable=False),
    _json("dependencies", nullable=False, default="[]"),
    Column("dependents", ARRAY(Uuid), nullable=False, server_default=text("'{}'::uuid[]")),
    _count("pending_dependencies"),
    _text("tool", nullable=False),
    _json("input_context", nullable=False, default="{}"),
    Column("referred", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    Column("timeout_s", Double, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("cacheable", Boolean, nullable=False, server_default=text("false")),
    _json("output_result"),
    Column("output_size", BigInteger),
    _text("output_sha256"),
    _json("error"),
    _json("resources", nullable=False, default="{}"),
    _text("shape", nullable=False),
    Column("score", Double, nullable=False),
    _count("attempt"),
    _count("retry_count"),
    _at("not_before"),
    Column("incarnation", Uuid),
    _text("worker_id"),
    Column("duration_ms", Double),
    _count("tokens_used", big=True),
    _at("created_at", nullable=False, default="now()"),
    _at("queued_at"),
    _at("started_at"),
    _at("finished_at"),
    _text("on_failure", nullable=False, default="block"),
    _json("stand_in"),
    _text("fallback_tool"),
    _json("fallback_input"),
    Column("fallback_referred", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    _flag("on_fallback"),
    Column("fallback_attempts", ARRAY(Integer), nullable=False, server_default=text("'{}'::integer[]")),
    _flag("require_approval"),
    _at("held_at"),
    Column("input_blob", Text, ForeignKey("blobs.sha256")),
    Column("output_blob", Text, ForeignKey("blobs.sha256")),
    _text("instruction"),
    Column("skills", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    _flag("superseded"),
    _text("ray_task_id"),
    UniqueConstraint("parent_id", "key", name="uq_sub_tasks_parent_id_key"),
)
Index("ix_sub_tasks_parent_id_execution_order", sub_tasks.c.parent_id, sub_tasks.c.execution_order)
_waiting = text("status = 'QUEUED' AND incarnation IS NULL")
Index("ix_sub_tasks_queued", sub_tasks.c.score, sub_tasks.c.id, postgresql_where=_waiting)
Index("ix_sub_tasks_leased", sub_tasks.c.incarnation, postgresql_where=text("incarnation IS NOT NULL"))
Index("ix_sub_tasks_backoff", sub_tasks.c.not_before, postgresql_where=text("status = 'FAILED'"))
_latest = sub_tasks.c.finished_at.desc()
Index("ix_sub_tasks_blocked", sub_tasks.c.parent_id, _latest, postgresql_where=text("status = 'BLOCKED'"))
for _name in ("input_blob", "output_blob"):
    Index(f"ix_sub_tasks_{_name}", sub_tasks.c[_name], postgresql_where=text(f"{_name} IS NOT NULL"))
Index("ix_sub_tasks_held", sub_tasks.c.held_at, postgresql_where=text("status = 'AWAITING_APPROVAL'"))

execution_logs = Table(
    "execution_logs",
    metadata,
    Column("sub_task_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("task_id", Uuid, nullable=False),
    _text("status", nullable=False),
    _at("queued_at"),
    _at("start_time", nullable=False),
    _at("end_time", nullable=False),
    Column("duration", Double, nullable=False),
    _count("tokens_used", big=True),
    _text("stdout", nullable=False, default=""),
    _text("stderr", nullable=False, default=""),
    _text("log_content", nullable=False, default=""),
    _text("error_message"),
    _json("error"),
    _json("spans", nullable=False, default="[]"),
    _text("worker_id"),
    _text("node_id"),
    _text("ray_task_id"),
    Column("user_id", Uuid),
    PrimaryKeyConstraint("sub_task_id", "attempt", name="pk_execution_logs"),
)
Index("ix_execution_logs_task_id", execution_logs.c.task_id, execution_logs.c.start_time)
Index("ix_execution_logs_start_time", execution_logs.c.start_time)
Index("ix_execution_logs_tokens", execution_logs.c.end_time, postgresql_where=text("tokens_used > 0"))
Index(
    "ix_execution_logs_user_id",
    execution_logs.c.user_id,
    execution_logs.c.start_time,
    postgresql_where=text("user_id IS NOT NULL"),
)

task_events = Table(
    "task_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _at("at", nullable=False, default="clock_timestamp()"),
    Column("task_id", Uuid, nullable=False),
    _text("kind", nullable=False),
    _text("subtask"),
    _text("from_status"),
    _text("to_status"),
    _text("phase"),
    Column("attempt", Integer),
    _text("reason"),
)
Index("ix_task_events_task_id_id", task_events.c.task_id, task_events.c.id)

log_lines = Table(
    "log_lines",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _at("at", nullable=False, default="clock_timestamp()"),
    Column("task_id", Uuid, nullable=False),
    _text("subtask"),
    Column("attempt", Integer),
    _text("stream", nullable=False),
    _text("level", nullable=False),
    _text("message", nullable=False),
    _json("fields", nullable=False, default="{}"),
)
Index("ix_log_lines_task_id_id", log_lines.c.task_id, log_lines.c.id)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Uuid, nullable=False),
    _text("key", nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("task_id", Uuid, nullable=False),
    _at("created_at", nullable=False, default="now()"),
    PrimaryKeyConstraint("user_id", "key", name="pk_idempotency_keys"),
)

schedulers = Table(
    "schedulers",
    metadata,
    Column("incarnation", Uuid, primary_key=True),
    _text("actor", nullable=False),
    _at("started_at", nullable=False, default="now()"),
    _at("heartbeat_at", nullable=False, default="now()"),
    _at("ended_at"),
)
Index("ix_schedulers_live", schedulers.c.heartbeat_at, postgresql_where=text("ended_at IS NULL"))
