"""What the scheduler, the singletons and the attempts are told by whoever runs rayloom: one picklable value."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr

from rayloom.dag.resources import NodeShape
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings


class EngineSettings(BaseModel):
    """How work is run. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry_initial_s: PositiveFloat = Field(default=1.0, description="the wait before the first retry, at least")
    retry_max_s: PositiveFloat = Field(default=60.0, description="the wait before a retry, at most, without jitter")
    lane: Literal["auto", "own"] = "auto"
    heartbeat_s: PositiveFloat = Field(default=1.0, description="how often a scheduler says that it lives")
    lease_s: PositiveFloat = Field(
        default=10.0, description="a scheduler that is silent for so long has lost its leases"
    )
    sweep_s: PositiveFloat = Field(default=10.0, description="how often PostgreSQL is searched for what Redis lost")
    faults: str = ""
    namespace: str = Field(default="rayloom", description="Ray namespace of the singletons")
    node_types: tuple[NodeShape, ...] = Field(default=(), description="kinds of node that an autoscaler could add")
    exclusive: bool = Field(default=False, description="no other scheduler can use this database")
    batch_max: PositiveInt = Field(default=256, description="outcomes or claims in one commit, at most")
    stop_grace_s: NonNegativeFloat = Field(default=0.8, description="how long a cancelled attempt may clean up")
    timeout_grace_s: NonNegativeFloat = Field(default=3.0, description="over timeout_s, before the worker is killed")
    output_max_bytes: PositiveInt = Field(default=64 * 1024 * 1024, description="a larger output fails its attempt")
    output_text_chars: PositiveInt = Field(
        default=256 * 1024, description="stdout and stderr kept in the attempt's row"
    )


class WorkerSettings(BaseModel):
    """What an attempt needs, in whichever process and on whichever node it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: EngineSettings
    database: DatabaseSettings
    redis: RedisSettings
    tools: ToolSettings

    def for_workers(self) -> WorkerSettings:
        """The same with nothing that only the scheduler may hold: the database by the workers' role alone."""
        database = self.database.model_copy(
            update={"url": SecretStr(self.database.worker_dsn()), "worker_url": None, "replica_url": None}
        )
        return self.model_copy(update={"database": database})
