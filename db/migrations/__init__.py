"""Alembic migrations: forward only, applied at start under an advisory lock."""
