"""Where the database, Redis and large contents are, and how many connections a process may hold.

Plain picklable values: each process builds its own engine and clients from them. URLs hold passwords, so they are
``SecretStr``: they print as stars and are opened only where a connection is made.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class DatabaseSettings(BaseModel):
    """PostgreSQL, as ``postgresql+asyncpg://`` URLs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr = Field(description="the primary: takes all writes; empty means the embedded server")
    replica_url: SecretStr | None = Field(default=None, description="reads of logs, traces, lists; None: primary")
    replica_max_lag_s: float = Field(default=10.0, gt=0, description="a replica that is later is not read from")
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


class S3Settings(BaseModel):
    """How S3, or whatever speaks its protocol, is reached. Without keys: as the machine's own role."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(default="", description="http:// or https://; empty: that of AWS in the region")
    region: str = "us-east-1"
    access_key_id: str = ""
    secret_access_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")


class BlobSettings(BaseModel):
    """Where contents are kept that are too large for a row. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str = Field(default="", description="s3://bucket/prefix for what is new; empty: PostgreSQL")
    s3: S3Settings = S3Settings()
    inline_max_bytes: int = Field(default=64 * 1024, ge=1, description="larger inputs and outputs are kept apart")
    cache_ttl_s: float = Field(default=600.0, ge=0, description="how long Redis keeps a copy; 0: not at all")
    grace_s: float = Field(default=86_400.0, gt=0, description="what nothing refers to is kept for so long")
