"""Where the database and Redis are, and how many connections a process may hold.

Plain picklable values: each process builds its own engine and clients from them. URLs hold passwords, so they are
``SecretStr``: they print as stars and are opened only where a connection is made.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class DatabaseSettings(BaseModel):
    """PostgreSQL, as ``postgresql+asyncpg://`` URLs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr = Field(description="the primary: takes all writes; empty means the embedded server")
    replica_url: SecretStr | None = Field(default=None, description="reads of logs, traces and lists; None: primary")
    worker_url: SecretStr | None = Field(default=None, description="the restricted role of workers; None: derived")
    pool_size: int = Field(default=20, ge=1, le=1000, description="connections kept by the API and the scheduler")
    max_overflow: int = Field(default=10, ge=0, le=1000, description="connections above pool_size under load")
    worker_pool_size: int = Field(default=2, ge=1, le=100, description="connections kept by a worker process")

    @property
    def dsn_given(self) -> bool:
        """Whether there is a URL; without one the embedded server is meant."""
        return bool(self.url.get_secret_value())

    def primary_dsn(self) -> str:
        """The primary's URL in the clear, for an engine; never log it."""
        return self.url.get_secret_value()

    def replica_dsn(self) -> str:
        """The replica's URL in the clear, or the primary's when there is no replica."""
        return (self.replica_url or self.url).get_secret_value()

    def worker_dsn(self) -> str:
        """The workers' URL in the clear, or the primary's when no restricted role is set."""
        return (self.worker_url or self.url).get_secret_value()


class RedisSettings(BaseModel):
    """Redis: queue of ready ids, wake-ups and caches; never the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr = Field(description="redis:// or rediss://; empty means the embedded server")
    pool_size: int = Field(default=50, ge=1, le=10_000, description="connections a process may open")

    @property
    def dsn_given(self) -> bool:
        """Whether there is a URL; without one the embedded server is meant."""
        return bool(self.url.get_secret_value())

    def dsn(self) -> str:
        """The URL in the clear, for a client; never log it."""
        return self.url.get_secret_value()
