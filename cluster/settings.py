"""All settings of rayloom in one place. Only this file and ``settings_of_up`` read the environment for them.

Sources, the first that names a setting wins: arguments, the environment, ``.env`` and ``rayloom.toml`` in the folder
of ``rayloom up``, those in ``RAYLOOM_HOME``, defaults. An empty value means the default. A job's own folder is never
read. Each room's share is handed on as a plain picklable value (``database``, ``redis``, ``serve`` …).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rayloom.cluster.settings_blobs import BlobFields, from_aws
from rayloom.cluster.settings_e2b import E2bFields, from_e2b
from rayloom.cluster.settings_engine import EngineFields
from rayloom.cluster.settings_local_model import LocalModelFields
from rayloom.cluster.settings_models import ModelFields
from rayloom.cluster.settings_packages import PackageFields
from rayloom.cluster.sources import (
    DEFAULT_HOME,
    PREFIX,
    SettingsError,
    Source,
    absolute,
    fault_lines,
    from_environment,
    from_folder,
    home_of,
)
from rayloom.cluster.spellings import AddressList, CommaList, DatabaseUrl, HttpUrl, JsonObjectOfSecrets, RedisUrl
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import PLAIN_PLAN_TIMEOUT_S, ServeSettings
from rayloom.tools.settings import DockerSettings, SandboxLimits, ToolSettings

__all__ = ["Settings", "SettingsError", "load_settings"]


_NONE = SecretStr("")
PLAN_TIMEOUT_S: Final = 900.0
"""Of planning without running, with a model: one of one's own needs minutes for an answer."""


class Settings(EngineFields, BlobFields, E2bFields, LocalModelFields, ModelFields, PackageFields):
    """Everything that a user may set; each field is the variable ``RAYLOOM_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    home: Path = Field(default=DEFAULT_HOME, description="data of the embedded services, logs, workspace")
    debug: bool = Field(default=False, description="show stack traces of unexpected errors")
    demo: bool = Field(default=True, description="run the demonstration after `rayloom up`")

    database_url: DatabaseUrl = Field(default=_NONE, description="primary; empty: embedded PostgreSQL")
    database_replica_url: DatabaseUrl = Field(default=_NONE, description="reads of logs, traces, lists and reports")
    replica_max_lag_s: float = Field(default=10.0, gt=0, description="a replica that is later is not read from")
    database_worker_url: DatabaseUrl = Field(
        default=_NONE, description="the workers' restricted role; empty: made by us"
    )
    database_pool_size: int = Field(default=20, ge=1, le=1000)
    database_max_overflow: int = Field(default=10, ge=0, le=1000)
    database_worker_pool_size: int = Field(default=2, ge=1, le=100)
    redis_url: RedisUrl = Field(default=_NONE, description="queue and cache; empty: embedded Redis")
    redis_pool_size: int = Field(default=50, ge=1, le=10_000)

    host: str = Field(default="127.0.0.1", min_length=1, description="address of the HTTP API")
    port: int = Field(default=8000, ge=1, le=65_535)
    url: HttpUrl = Field(default="", description="where clients find the API; empty: http://HOST:PORT")
    mcp_hosts: CommaList = Field(default=(), description="other names than that of URL under which /mcp is found")
    max_body_mb: int = Field(default=64, ge=1, le=1024, description="a larger request body is answered 413")
    body_idle_s: float = Field(default=15, gt=0, description="a request body that stands still so long is answered 408")
    bodies_per_user: int = Field(default=32, ge=1, description="slow bodies of a user in a replica; above: 429")
    admission_requests: int = Field(default=200, ge=1, description="requests in flight in a replica; above: 503")
    api_replicas: int = Field(default=1, ge=1, le=100, description="processes that serve the API; more under load")
    admission_streams: int = Field(default=500, ge=1, description="event streams open in a replica; above: 503")
    api_key: SecretStr = Field(
        default=_NONE, description="the command line's key, 8 characters or more; empty: HOME/api_key"
    )
    secret_key: SecretStr = Field(default=_NONE, description="encrypts secrets of users; empty: HOME/secret_key")

    ray_address: str = Field(default="", description="a running Ray cluster; empty: start a local Ray")
    ray_auth: Literal["token", "disabled"] = Field(default="token", description="authentication of the local Ray")
    ray_cluster_file: Path | None = Field(default=None, description="the file of `ray up`: nodes that may be added")
    ray_dashboard_port: int = Field(default=8265, ge=1, le=65_535)
    ray_failures: int = Field(default=3, ge=1, description="so many failures of Ray in five minutes end `rayloom up`")
    ray_num_cpus: int | None = Field(default=None, ge=1, description="CPUs of the local Ray; empty: all")
    ray_warm_workers: int | None = Field(
        default=None, ge=0, description="workers started before the first request; empty: 4 a CPU, at most 32"
    )

    sandbox: Literal["auto", "docker", "bubblewrap", "e2b", "unsafe-local"] = "auto"
    sandbox_max_wall_s: float = Field(default=3_600, gt=0, description="no run in a sandbox may ask for more seconds")
    sandbox_max_memory_mb: int = Field(default=8_192, ge=16)
    sandbox_max_pids: int = Field(default=1_024, ge=1)
    sandbox_max_output_kb: int = Field(default=16_384, ge=1)
    sandbox_max_disk_mb: int = Field(default=2_048, ge=1)
    sandbox_max_cpus: float = Field(default=16, gt=0, description="no container may ask for more CPUs")
    sandbox_image: str = Field(default="", description="of containers; empty: what `rayloom sandbox build` makes")
    sandbox_runtime: str = Field(default="", description="the engine's runtime for containers, such as runsc")
    sandbox_warm: int = Field(default=1, ge=0, le=16, description="containers kept ready by each process that runs any")
    mcp_memory_mb: int = Field(default=1_024, ge=16, description="no MCP server in the sandbox may hold more")
    docker_address: str = Field(default="unix:///var/run/docker.sock", description="the socket of the container engine")
    log_store: Literal["postgres", "loki", "elasticsearch"] = "postgres"
    allow_addresses: AddressList = Field(
        default=(), description="host:port or CIDR, comma-separated, that tools and webhooks may reach although private"
    )
    sql_connections: JsonObjectOfSecrets = Field(default_factory=dict, description='{"name": "url"} for sql.query')
    skills_dir: Path | None = Field(default=None, description="where Skills may be registered from; empty: HOME/skills")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is given: `load_settings` gathers the sources, checks their names and skips service links."""
        return (init_settings,)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.retry_max_s < self.retry_initial_s:
            raise ValueError("RAYLOOM_RETRY_MAX_S is less than RAYLOOM_RETRY_INITIAL_S")
        if self.local_model and self.llm_base_url:
            raise ValueError("RAYLOOM_LOCAL_MODEL and RAYLOOM_LLM_BASE_URL both say which model to ask: leave one out")
        if self.lease_s < 2 * self.heartbeat_s:
            raise ValueError("RAYLOOM_LEASE_S must be at least twice RAYLOOM_HEARTBEAT_S")
        return self

    @property
    def api_url(self) -> str:
        """Where the command line, the client and batches find the API."""
        return self.url or self._listening_url

    @property
    def near_url(self) -> str:
        """Where `rayloom up` itself finds it: where it listens, unless that is on the nodes of somebody's Ray."""
        return self.api_url if self.ray_address else self._listening_url

    @property
    def _listening_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def database(self) -> DatabaseSettings:
        """The database as configured; its URL is empty when the embedded server is meant."""
        return DatabaseSettings(
            url=self.database_url,
            replica_url=self.database_replica_url if self.database_replica_url.get_secret_value() else None,
            replica_max_lag_s=self.replica_max_lag_s,
            worker_url=self.database_worker_url if self.database_worker_url.get_secret_value() else None,
            pool_size=self.database_pool_size,
            max_overflow=self.database_max_overflow,
            worker_pool_size=self.database_worker_pool_size,
        )

    @property
    def redis(self) -> RedisSettings:
        """Redis as configured; its URL is empty when the embedded server is meant."""
        return RedisSettings(url=self.redis_url, pool_size=self.redis_pool_size)

    @property
    def serve(self) -> ServeSettings:
        """What the HTTP side is told."""
        return ServeSettings(
            host=self.host,
            port=self.port,
            public_url=self.api_url,
            mcp_hosts=self.mcp_hosts,
            max_body_bytes=self.max_body_mb * 1024 * 1024,
            body_idle_s=self.body_idle_s,
            bodies_per_user=self.bodies_per_user,
            admission_requests=self.admission_requests,
            admission_streams=self.admission_streams,
            api_replicas=self.api_replicas,
            secret_key=self.secret_key,
            allow_addresses=self.allow_addresses,
            with_models=self.models.is_configured,
            approval_levels=self.approval_levels,
            skills_dir=self.skills_dir,
            plan_timeout_s=PLAN_TIMEOUT_S if self.models.is_configured else PLAIN_PLAN_TIMEOUT_S,
        )

    @property
    def docker(self) -> DockerSettings:
        """The container engine that sandboxes may run in."""
        return DockerSettings(
            address=self.docker_address,
            image=self.sandbox_image,
            runtime=self.sandbox_runtime,
            warm=self.sandbox_warm,
        )

    @property
    def tools(self) -> ToolSettings:
        """What tools are told."""
        return self.tools_for(self.database)

    def tools_for(self, database: DatabaseSettings) -> ToolSettings:
        """What tools are told, with ``database`` named as the one that no connection of theirs may reach."""
        urls = (database.url, database.replica_url, database.worker_url)
        return ToolSettings(
            allow_addresses=self.allow_addresses,
            sql_connections=self.sql_connections,
            sql_forbidden_urls=tuple(url for url in urls if url is not None and url.get_secret_value()),
            sandbox=self.sandbox,
            docker=self.docker,
            e2b=self.e2b,
            sandbox_packages_dir=self.sandbox_packages_dir,
            sandbox_packages_index_url=self.sandbox_packages_index_url,
            sandbox_packages_max_bytes=self.sandbox_packages_max_mb * 1024 * 1024,
            mcp_memory_mb=self.mcp_memory_mb,
            sandbox_caps=SandboxLimits(
                wall_s=self.sandbox_max_wall_s,
                memory_mb=self.sandbox_max_memory_mb,
                pids=self.sandbox_max_pids,
                output_kb=self.sandbox_max_output_kb,
                disk_mb=self.sandbox_max_disk_mb,
                cpus=self.sandbox_max_cpus,
            ),
        )


def load_settings(folder: Path | None = None, *, environ: Mapping[str, str] | None = None, **given: object) -> Settings:
    """Read all sources. ``folder``: that of ``rayloom up`` (commands beside it: see `settings_of_up`), or None in the
    cluster's processes, which read only HOME's files.

    ``given`` are settings by field name that go before everything else. Raises SettingsError, with one line for each
    fault and no value of a secret.
    """
    known = Settings.model_fields
    environ = os.environ if environ is None else environ
    arguments = Source(origin="arguments", values=_known(given), folder=Path.cwd())
    sources = [arguments, from_environment(environ, known)]
    if folder is not None:
        sources += from_folder(folder.absolute(), known)
    home = home_of(sources)
    if folder is None or home != folder.absolute():
        sources += [_without_home(source) for source in from_folder(home, known)]
    values, origins = _merged(sources)
    for others, origin in ((from_aws, "the environment of AWS"), (from_e2b, "the environment of E2B")):
        found = others(environ, values)
        values |= found
        origins |= dict.fromkeys(found, origin)
    values["home"] = home
    if "skills_dir" not in values:
        values["skills_dir"] = home / "skills"
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(fault_lines(error, values, origins)) from None
    _refuse_unbuilt(settings)
    return settings


def _known(given: Mapping[str, object]) -> dict[str, object]:
    unknown = set(given) - set(Settings.model_fields)
    if unknown:
        raise TypeError(f"not settings: {sorted(unknown)}")
    return {name: value for name, value in given.items() if value is not None}


def _without_home(source: Source) -> Source:
    if "home" not in source.values:
        return source
    raise SettingsError([f"RAYLOOM_HOME can't be set in {source.origin}, which lies in it"])


def _merged(sources: list[Source]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in sources:
        for name, value in source.values.items():
            if name not in origins:
                origins[name] = source.origin
                if value != "":
                    relative = name == "skills_dir" and isinstance(value, str | Path)
                    values[name] = absolute(str(value), source.folder) if relative else value
    return values, origins


def _refuse_unbuilt(settings: Settings) -> None:
    if settings.log_store != "postgres":
        raise SettingsError([f"RAYLOOM_LOG_STORE={settings.log_store} is not built in this version; use postgres"])
