"""Brings up what runs on Ray: the cluster itself when none is given, the schema, the singletons, and Serve."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
from pydantic import SecretStr
from sqlalchemy import make_url

from rayloom.actors.settings import EngineSettings, WebhookSettings, WorkerSettings
from rayloom.cluster.checks import ClusterAbsent, StartRefused
from rayloom.cluster.first_rows import prepare_database
from rayloom.cluster.hearsay import keep_out_of_the_terminal
from rayloom.cluster.home import Home
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.node_types import node_types
from rayloom.cluster.planning_time import answer_s
from rayloom.cluster.ray_access import refuse_wrong_token, set_authentication, temporary_folder
from rayloom.cluster.running import RunningCluster, end_singletons
from rayloom.cluster.serving import serve_model, serve_runs, start_serve, until_deployed
from rayloom.cluster.settings import Settings
from rayloom.dag.errors import Transient
from rayloom.dag.token_port import Quota
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.serve.settings import MAX_BODY_VARIABLE, PROXY_CALLBACK, REPLICA_RETRIES
from rayloom.tools.tool import LIGHT

_log = logging.getLogger(__name__)

SANDBOXES_PER_CPU = 4
WARM_WORKERS_MAX = 32
"""Each takes some 100 MB of memory."""
WORKER_IDLE_MS = 10 * 60 * 1000
"""How long a worker may be idle before Ray may end it."""
TASKS_SHOWN = 10_000
"""How many tasks Ray keeps for its dashboard and `ray list tasks`."""
PROXY_LOOK_S = 2
"""How often Serve looks whether its proxies live."""
PROXY_LOOK_WAIT_S = 15
"""How long a look waits: with this one that is merely slow has as long as before, some 50 s in all."""
PROXY_START_S = 20
"""A third of the time that Serve gives a proxy to start."""
READY_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Outputs are kept in PostgreSQL; Ray's object store only carries them there."""


async def start(
    settings: Settings,
    database: DatabaseSettings,
    redis: RedisSettings,
    *,
    exclusive: bool,
    llama: LlamaSettings | None = None,
) -> RunningCluster:
    """Start everything above the services. ``exclusive``: no other scheduler can use this database. ``llama``: a local
    model to serve; it may load for longer than this takes.

    Raises StartRefused, with one line that says what to do. Whatever it is that ends it early, cancellation too: what
    it had started on Ray is taken away again.
    """
    home = Home(settings.home)
    database, api_key = await prepare_database(settings, home, database)
    nodes = node_types(settings.ray_cluster_file, settings.ray_address)
    engine = settings.engine.model_copy(
        update={
            "exclusive": exclusive,
            "node_types": nodes,
            "with_models": settings.models.is_configured,
            "plan_answer_s": answer_s(settings.models),
        }
    )
    secret_key = settings.secret_key if settings.secret_key.get_secret_value() else SecretStr(home.secret("secret_key"))
    worker_settings = WorkerSettings(
        engine=engine,
        database=database,
        redis=redis,
        tools=settings.tools_for(_without_passwords(database)),
        models=settings.models,
        blobs=settings.blobs,
        webhooks=WebhookSettings(
            secret_key=secret_key, source=settings.api_url, retry_initial_s=settings.retry_initial_s
        ),
    )
    settings = settings.model_copy(update={"secret_key": secret_key})
    _environment(settings, home)
    with _signals_kept():
        dashboard = _start_ray(settings)
    running = RunningCluster(
        urls=_urls(settings, dashboard), api_key=api_key, settings=worker_settings, owns_ray=not settings.ray_address
    )
    deploying: asyncio.Future[None] | None = None
    try:
        if not running.owns_ray:
            # They were started with the settings of an earlier `up`, which may have been other ones.
            await asyncio.to_thread(end_singletons, engine)
            running.owns_serve = not await asyncio.to_thread(serve_runs)
        for deploy in (
            partial(_start_singletons, worker_settings, home, secret_key),
            partial(start_serve, settings, worker_settings),
            partial(serve_model, llama),
        ):
            # In threads: each may wait for a cluster that has gone, which has to be noticed meanwhile.
            deploying = asyncio.ensure_future(asyncio.to_thread(deploy))
            await asyncio.shield(deploying)
        await until_deployed(READY_TIMEOUT_S)
        # Not at RAYLOOM_URL: what stands between that and us may come up after us.
        await _until_ready(settings.near_url)
        if running.owns_ray:
            await _warm_workers(settings, engine)
    except BaseException:
        await running.undo(deploying)
        raise
    return running


def _environment(settings: Settings, home: Home) -> None:
    """What Ray, its workers and its jobs find in their environment; read when Ray is imported."""
    set_authentication(settings, home)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not settings.ray_address:
        # Ray ends workers beyond one a CPU that have been idle for a second; ours hold fractions of one, and take a
        # second of CPU to start again. (Not RAY_num_workers_soft_limit: Ray takes that for the number of free CPUs,
        # too, and starts so many workers for whatever waits, whether they could run or not.)
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(WORKER_IDLE_MS))
        # Counts and times of its event loops, for debugging Ray itself; they cost each call some microseconds.
        os.environ.setdefault("RAY_event_stats", "0")
        # Ray's control service keeps 100,000 tasks, of 3.5 KB each, for `ray list tasks`, which lists 10,000 at most.
        os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", str(TASKS_SHOWN))
        # Serve replaces a proxy that failed three of its looks, ten seconds apart: so long nobody could reach the API.
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", str(PROXY_LOOK_S))
        os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", str(PROXY_LOOK_WAIT_S))
        # And one that was not there after three times five seconds: on a busy machine that leads nowhere.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_START_S))
        # After three replicas in a row that did not start (their nodes died, say) a controller that has seen none start
        # gives the API up for good.
        os.environ.setdefault("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", str(REPLICA_RETRIES))
        # Serve's proxies have no time-out for headers, and answer in plain text.
        os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_CALLBACK)
        os.environ[MAX_BODY_VARIABLE] = str(settings.max_body_mb)
        # Despite its name, this is how Ray is told to stay on the loopback instead of the machine's own address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Jobs and batches find us, and the Python that has us installed.
    os.environ.update(RAYLOOM_HOME=str(settings.home), RAYLOOM_URL=settings.api_url)
    scripts = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "").split(os.pathsep)
    if path[0] != scripts:
        os.environ["PATH"] = os.pathsep.join([scripts, *path])


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray ends its process by itself on SIGTERM, which is not for it to decide."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _cpus(settings: Settings) -> int:
    return settings.ray_num_cpus or os.cpu_count() or 1


def _start_ray(settings: Settings) -> str:
    """Start or join Ray; answers the dashboard's URL, empty when it has none."""
    import ray

    keep_out_of_the_terminal()
    if settings.ray_address:
        refuse_wrong_token(settings.ray_address)
        try:
            context = ray.init(
                address=settings.ray_address, namespace="rayloom", log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, RuntimeError) as error:
            raise ClusterAbsent(
                f"no Ray cluster answers at RAYLOOM_RAY_ADDRESS={settings.ray_address} ({type(error).__name__}): "
                "start one with `ray start --head`, or unset it to start a local Ray"
            ) from None
    else:
        cpus, folder = _cpus(settings), temporary_folder()
        _take_jobs_on_any_port()
        try:
            # In this thread, which lives as long as the driver: Ray's processes die with the thread that started them.
            context = ray.init(
                address="local",
                num_cpus=cpus,
                resources={"sandbox": cpus * SANDBOXES_PER_CPU},
                object_store_memory=OBJECT_STORE_BYTES,
                namespace="rayloom",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=settings.ray_dashboard_port,
                _node_ip_address="127.0.0.1",
                _temp_dir=str(folder),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:
            # Ray has no type of its own for it, and no setting for how long it waits.
            if "timed out during startup" not in str(error):
                raise
            raise StartRefused(
                "Ray did not start within its 30 s: this machine is too busy or has too little memory free; try again "
                f"when it is quieter (Ray's own logs: {folder}/session_latest/logs)"
            ) from None
    return f"http://{context.dashboard_url}" if context.dashboard_url else ""


def _take_jobs_on_any_port() -> None:
    """Let Ray choose the port of its node's agent, which runs jobs; `ray.init` has no word for it.

    By default it is the same for every Ray of a machine, and any but the first could run no `ray job submit`.
    """
    from ray._private.parameter import RayParams

    names = list(inspect.signature(RayParams.__init__).parameters.values())
    defaults = [0 if each.name == "dashboard_agent_listen_port" else each.default for each in names]
    RayParams.__init__.__defaults__ = tuple(value for value in defaults if value is not inspect.Parameter.empty)


def _start_singletons(settings: WorkerSettings, home: Home, secret_key: SecretStr) -> None:
    from rayloom.actors.mcp_actor import start_mcp_host
    from rayloom.actors.scheduler_actor import start_scheduler
    from rayloom.actors.singletons import start_registry, start_tokens

    start_registry(settings.engine, settings.database)
    limits = {
        each.name: Quota(
            tokens_per_min=each.tokens_per_min,
            requests_per_min=each.requests_per_min,
            max_concurrent=each.max_concurrent,
        )
        for each in settings.models.models
    }
    start_tokens(settings.engine, settings.database, models=limits)
    start_mcp_host(settings.engine, settings.database, secret_key=secret_key, tools=settings.tools)
    start_scheduler(settings, cluster=str(home.path))


async def _warm_workers(settings: Settings, engine: EngineSettings) -> None:
    """Start workers for light tools before the first request: each takes a second of CPU."""
    from rayloom.actors.scheduler_actor import RayScheduler

    count = settings.ray_warm_workers
    if count is None:
        count = min(int(_cpus(settings) / LIGHT["CPU"]), WARM_WORKERS_MAX)
    try:
        await RayScheduler(engine).warm(cpus=LIGHT["CPU"], count=count)
    except Transient as error:
        _log.warning("workers.not_warmed", extra={"error": error.message})


async def _until_ready(url: str) -> None:
    deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
    async with httpx2.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
        while True:
            try:
                answer = await client.get("/readyz")
                if answer.status_code == 200:
                    return
                last = answer.text[:300]
            except httpx2.HTTPError as error:
                last = type(error).__name__
            if asyncio.get_running_loop().time() > deadline:
                raise StartRefused(f"the API at {url} did not become ready within {READY_TIMEOUT_S:.0f} s: {last}")
            await asyncio.sleep(0.1)


def _without_passwords(database: DatabaseSettings) -> DatabaseSettings:
    """The same places with no way in: enough to tell that a URL points there."""

    def bare(url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        return SecretStr(make_url(url.get_secret_value()).set(password=None).render_as_string(hide_password=False))

    return database.model_copy(
        update={name: bare(getattr(database, name)) for name in ("url", "replica_url", "worker_url")}
    )


def _urls(settings: Settings, dashboard: str) -> dict[str, str]:
    url = settings.api_url
    urls = {"console": url + "/", "api": url + "/api/v1", "mcp": url + "/mcp", "docs": url + "/docs"}
    if dashboard:
        urls["ray"] = dashboard
    return urls
