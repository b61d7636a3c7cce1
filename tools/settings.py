"""The settings that tools use, handed down by the composition as one picklable value."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr

SandboxChoice = Literal["auto", "docker", "bubblewrap", "e2b", "unsafe-local"]


class SandboxLimits(BaseModel):
    """What one run in a sandbox may use.

    ``wall_s`` seconds of wall clock; ``memory_mb`` MiB of the whole process tree; ``pids`` processes and threads;
    ``output_kb`` KiB kept of each of stdout and stderr; ``disk_mb`` MiB in the workspace, and as much again in /tmp;
    ``cpus`` CPUs' worth of time, which only containers hold a program to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_s: PositiveFloat = 30
    memory_mb: PositiveInt = 512
    pids: PositiveInt = 128
    output_kb: PositiveInt = 1_024
    disk_mb: PositiveInt = 64
    cpus: PositiveFloat = 1


class DockerSettings(BaseModel):
    """The container engine that sandboxes may run in.

    ``image`` empty: the one that ``rayloom sandbox build`` makes. ``runtime`` empty: the engine's own choice.
    ``warm`` containers are kept ready by each process that has run one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = "unix:///var/run/docker.sock"
    image: str = ""
    runtime: str = ""
    warm: NonNegativeInt = 1


class E2bSettings(BaseModel):
    """The E2B service that sandboxes may run at.

    ``api_url`` and ``sandbox_url`` empty: where the domain has them. ``template``: what its sandboxes are made of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: SecretStr = SecretStr("")
    domain: str = "e2b.app"
    api_url: str = ""
    sandbox_url: str = ""
    template: str = "base"


class ToolSettings(BaseModel):
    """Everything that tools are told by whoever runs rayloom. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_addresses: tuple[str, ...] = Field(
        default=(), description="host:port, IP, or CIDR entries that HTTP tools may reach although private"
    )
    http_timeout_s: PositiveFloat = 60
    http_max_body_bytes: PositiveInt = 5 * 1024 * 1024

    sql_connections: dict[str, SecretStr] = Field(default_factory=dict)
    sql_forbidden_urls: tuple[SecretStr, ...] = Field(
        default=(), description="databases that no named connection may point at: rayloom's own"
    )
    sql_timeout_s: PositiveFloat = 30
    sql_max_rows: PositiveInt = 1_000
    sql_max_bytes: PositiveInt = 4 * 1024 * 1024

    files_max_bytes: PositiveInt = 16 * 1024 * 1024
    evaluation_cpu_s: PositiveInt = Field(default=5, description="CPU seconds of one template or query")
    evaluation_memory_mb: PositiveInt = 512
    evaluation_max_bytes: PositiveInt = 4 * 1024 * 1024

    sandbox: SandboxChoice = "auto"
    docker: DockerSettings = DockerSettings()
    e2b: E2bSettings = E2bSettings()
    sandbox_packages_dir: Path | None = Field(default=None, description="wheels that programs may ask for")
    sandbox_packages_index_url: SecretStr = Field(default=SecretStr(""), description="a package index, by its address")
    sandbox_packages_max_bytes: PositiveInt = Field(default=512 * 1024 * 1024, description="of one set of packages")
    sandbox_defaults: SandboxLimits = SandboxLimits()
    sandbox_caps: SandboxLimits = SandboxLimits(
        wall_s=3_600, memory_mb=8_192, pids=1_024, output_kb=16_384, disk_mb=2_048, cpus=16
    )
    mcp_memory_mb: PositiveInt = Field(default=1_024, description="what a confined MCP server may hold")
    sandbox_files_max_count: PositiveInt = 256
    sandbox_files_max_bytes: PositiveInt = 16 * 1024 * 1024
