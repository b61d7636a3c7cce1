"""The table of dead letters. Its migration is the truth; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, Table, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from rayloom.db.schema import metadata

_MOMENT = TIMESTAMP(timezone=True)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", Uuid, ForeignKey("sub_tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("task_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("subtask", Text, nullable=False),
    Column("tool", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("error", JSONB(none_as_null=True), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("at", _MOMENT, nullable=False),
    Column("updated_at", _MOMENT, nullable=False),
    Column("settled_at", _MOMENT),
    Column("mirrored", Boolean, nullable=False, server_default=text("false")),
)
_newest_first = (dead_letters.c.at.desc(), dead_letters.c.id.desc())
Index("ix_dead_letters_user_id_at", dead_letters.c.user_id, *_newest_first)
Index("ix_dead_letters_user_id_status_at", dead_letters.c.user_id, dead_letters.c.status, *_newest_first)
Index(
    "ix_dead_letters_user_id_fingerprint_at",
    dead_letters.c.user_id,
    dead_letters.c.fingerprint,
    dead_letters.c.status,
    *_newest_first,
)
Index("ix_dead_letters_task_id", dead_letters.c.task_id)
Index("ix_dead_letters_settled", dead_letters.c.settled_at, postgresql_where=text("settled_at IS NOT NULL"))
Index("ix_dead_letters_unmirrored", dead_letters.c.at, postgresql_where=text("NOT mirrored"))
