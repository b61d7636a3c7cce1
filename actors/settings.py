"""What the scheduler, the singletons and the attempts are told by whoever runs rayloom: one picklable value."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
)

from rayloom.dag.breaker import BreakerPolicy
from rayloom.dag.resources import NodeShape
from rayloom.db.settings import BlobSettings, DatabaseSettings, RedisSettings
from rayloom.tools.models.settings import ModelsSettings
from rayloom.tools.settings import ToolSettings


class BreakerSettings(BaseModel):
    """When the breaker of a tool opens, and for how long (`dag.breaker.BreakerPolicy`). Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_s: PositiveFloat = 60.0
    calls_min: PositiveInt = 10
    failure_share: PositiveFloat = Field(default=0.5, le=1)
    failures_in_a_row: PositiveInt = 5
    cooldown_s: PositiveFloat = 5.0
    cooldown_max_s: PositiveFloat = 300.0
    calm_s: PositiveFloat = 600.0
    probe_s: PositiveFloat = 60.0


class EngineSettings(BaseModel):
    """How work is run. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry_initial_s: PositiveFloat = Field(default=1.0, description="the wait before the first retry, at least")
    retry_max_s: PositiveFloat = Field(default=60.0, description="the wait before a retry, at most")
    lane: Literal["auto", "own"] = "auto"
    heartbeat_s: PositiveFloat = Field(default=1.0, description="how often a scheduler says that it lives")
    lease_s: PositiveFloat = Field(
        default=10.0, description="a scheduler that is silent for so long has lost its leases"
    )
    cache_ttl_s: NonNegativeFloat = Field(default=3600.0, description="how long results are kept; 0: not at all")
    sweep_s: PositiveFloat = Field(default=10.0, description="how often PostgreSQL is searched for what Redis lost")
    approval_levels: tuple[str, ...] = Field(default=(), description="tools of these levels want approval")
    approval_ttl_s: PositiveFloat = Field(default=7 * 86_400, description="what waits for approval longer is rejected")
    dead_letter_retention_s: PositiveFloat = Field(
        default=30 * 86_400, description="how long letters are kept of which nothing can come any more"
    )
    with_models: bool = Field(default=False, description="a model is configured, for planning, thinking and coding")
    plan_answer_s: PositiveFloat = Field(default=120.0, description="a parser that takes longer did not answer")
    quota_warn_share: PositiveFloat = Field(default=0.8, le=1, description="a limit is nearly used up from here on")
    faults: str = Field(default="", description="seed:rate, faults injected at the seams of every process; tests only")
    breaker: BreakerSettings = BreakerSettings()
    namespace: str = Field(default="rayloom", description="Ray namespace of the singletons")
    node_types: tuple[NodeShape, ...] = Field(default=(), description="kinds of node that an autoscaler could add")
    exclusive: bool = Field(default=False, description="no other scheduler can use this database")
    batch_max: PositiveInt = Field(default=256, description="outcomes or claims in one commit, at most")
    stop_grace_s: NonNegativeFloat = Field(default=0.8, description="how long a cancelled attempt may clean up")
    timeout_grace_s: NonNegativeFloat = Field(default=3.0, description="over timeout_s, before the worker is killed")
    early_start: bool = Field(default=True, description="what only reads runs while a model still writes the plan")
    max_replans: NonNegativeInt = Field(default=2, description="so often a plan of a model may be added to")
    output_max_bytes: PositiveInt = Field(default=64 * 1024 * 1024, description="a larger output fails its attempt")
    output_text_chars: PositiveInt = Field(
        default=256 * 1024, description="stdout and stderr kept in the attempt's row"
    )

    @property
    def breaker_policy(self) -> BreakerPolicy:
        """The same for the breakers themselves."""
        return BreakerPolicy(**self.breaker.model_dump())


class WebhookSettings(BaseModel):
    """How the ends of tasks are told. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret_key: SecretStr = Field(min_length=1, description="what the secrets of callbacks are encrypted with")
    source: str = Field(min_length=1, description="the `source` of events: where the API is found")
    timeout_s: PositiveFloat = Field(default=10.0, description="a receiver that takes longer did not answer")
    retry_initial_s: PositiveFloat = Field(default=1.0, description="the first retry comes after five times as long")


class WorkerSettings(BaseModel):
    """What an attempt needs, in whichever process and on whichever node it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings
    database: DatabaseSettings
    redis: RedisSettings
    tools: ToolSettings
    models: ModelsSettings = ModelsSettings()
    blobs: BlobSettings = BlobSettings()
    webhooks: WebhookSettings | None = Field(default=None, description="None where nobody tells any")

    def for_workers(self) -> WorkerSettings:
        """The same with nothing that only the scheduler may hold: the database by the workers' role alone."""
        database = self.database.model_copy(
            update={"url": SecretStr(self.database.worker_dsn()), "worker_url": None, "replica_url": None}
        )
        return self.model_copy(update={"database": database, "webhooks": None})
