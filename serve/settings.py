"""What the HTTP side is told: its address, and how much it takes in at once.

Limits are answered by the app itself, as problem details, before Serve's proxy would answer in its own words.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

MIB = 1024 * 1024
PLAIN_PLAN_TIMEOUT_S = 60.0
REPLICA_RETRIES = 1_000_000
"""How many replicas in a row may fail to start before Serve gives the API up for good: it shall go on by itself."""

PROXY_CALLBACK = "rayloom.serve.proxy:configure"
"""The function that each of Serve's proxies calls before it listens."""
MAX_BODY_VARIABLE = "RAYLOOM_MAX_BODY_MB"
"""In the environment of Serve's proxies; they know no other setting."""


class ServeSettings(BaseModel):
    """Plain picklable values for the ingress and the parser deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address that Serve binds")
    port: int = Field(default=8000, ge=1, le=65_535)
    public_url: str = Field(default="http://127.0.0.1:8000", description="where clients find the API")
    mcp_hosts: tuple[str, ...] = Field(default=(), description="other names under which clients find /mcp")
    secret_key: SecretStr = Field(default=SecretStr(""), description="encrypts secrets of users; empty: takes none")
    allow_addresses: tuple[str, ...] = Field(default=(), description="what webhooks may reach although private")
    skills_dir: Path | None = Field(default=None, description="where Skills may be registered from by path")
    max_body_bytes: int = Field(default=64 * MIB, ge=1024, description="a larger body is answered 413")
    body_idle_s: float = Field(default=15.0, gt=0, description="a body that stands still so long is answered 408")
    bodies_per_user: int = Field(default=32, ge=1, description="slow bodies of a user in a replica; above: 429")
    request_timeout_s: float = Field(default=30.0, gt=0, description="per request; event streams are exempt")
    submit_timeout_s: float = Field(default=120.0, gt=0, description="the same for a submission, which may be large")
    invoke_timeout_s: float = Field(default=60.0, gt=0, description="seconds that a direct call of a tool may run")
    invoke_timeout_max_s: float = Field(default=3600.0, gt=0, description="the most that a direct call may ask for")
    invoke_queue_s: float = Field(default=30.0, gt=0, description="how long a direct call may wait for its turn")
    probe_timeout_s: float = Field(default=2.0, gt=0, description="a dependency that is silent longer is not ready")
    admission_requests: int = Field(default=200, ge=1, description="requests in flight in a replica; above: 503")
    admission_streams: int = Field(default=500, ge=1, description="open event streams in a replica; above: 503")
    admission_body_bytes: int = Field(default=256 * MIB, ge=1024, description="bytes of bodies held; above: 503")
    admission_retry_after_s: int = Field(default=2, ge=1, description="Retry-After of a 503 for overload")
    api_replicas: int = Field(default=1, ge=1, description="API replicas to start with")
    api_replicas_max: int = Field(default=4, ge=1)
    parser_replicas: int = Field(default=1, ge=1, description="parser replicas to start with")
    parser_replicas_max: int = Field(default=4, ge=1)
    replica_cpus: float = Field(default=0.0, ge=0, description="CPUs that a replica asks Ray for")
    drain_s: float = Field(default=10.0, ge=0, description="how long a stopping replica may finish its requests")
    with_models: bool = Field(default=False, description="a model is configured, for planning, thinking and coding")
    plan_timeout_s: float = Field(
        default=PLAIN_PLAN_TIMEOUT_S, gt=0, description="how long planning without running may take"
    )
    plannings_at_once: int = Field(default=8, ge=1, description="plannings of one user in a replica; above: 429")
    sse_keepalive_s: float = Field(default=15.0, gt=0, description="a comment is sent on a quiet stream this often")
    approval_levels: tuple[str, ...] = Field(default=(), description="tools of these levels want approval")
    inline_output_bytes: int = Field(default=256 * 1024, ge=0, description="larger outputs are given by reference")
