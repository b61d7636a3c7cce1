"""Contents that are kept apart, and the files of tasks and tools, as SQLAlchemy sees them; see `schema`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, PrimaryKeyConstraint, Table, Text, Uuid

from rayloom.db.columns import at_column as _at
from rayloom.db.columns import metadata
from rayloom.db.columns import text_column as _text

blobs = Table(
    "blobs",
    metadata,
    _text("sha256", nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("data", LargeBinary),
    _at("created_at", nullable=False, default="now()"),
    _text("place"),
    _at("touched_at", nullable=False, default="now()"),
    PrimaryKeyConstraint("sha256"),
)

blob_remains = Table("blob_remains", metadata, _text("place", nullable=False), PrimaryKeyConstraint("place"))

task_files = Table(
    "task_files",
    metadata,
    Column("task_id", Uuid, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    _text("path", nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("size", BigInteger, nullable=False),
    _text("media_type", nullable=False),
    _at("updated_at", nullable=False, default="now()"),
    PrimaryKeyConstraint("task_id", "path", name="pk_task_files"),
)
Index("ix_task_files_sha256", task_files.c.sha256)

tool_blobs = Table(
    "tool_blobs",
    metadata,
    Column("tool_id", Uuid, ForeignKey("tools.id", ondelete="CASCADE"), nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    PrimaryKeyConstraint("tool_id", "sha256", name="pk_tool_blobs"),
)
Index("ix_tool_blobs_sha256", tool_blobs.c.sha256)
