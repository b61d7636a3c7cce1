"""Alive, ready, and the numbers that a monitoring system asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter, time
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import APIRouter, Request, Security
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from rayloom.dag.errors import Transient
from rayloom.db.metrics import Counts, Totals, read_counts, read_totals
from rayloom.db.read_split import ReadSplit
from rayloom.db.replica_watch import ReplicaState
from rayloom.serve.auth import BEARER, KEY_HEADER, authenticate
from rayloom.serve.deps import Deps, ask, deps_of
from rayloom.serve.json_answer import json_answer
from rayloom.serve.measures import Measures, ReadCounts, TotalCounts
from rayloom.serve.refreshed import Refreshed
from rayloom.serve.token_measures import share_text, token_text

T = TypeVar("T")

router = APIRouter(tags=["operation"])
METRICS_AGE_S: Final = 2.0
CHECKS_AGE_S: Final = 0.5
Checks: TypeAlias = "Mapping[str, dict[str, Any]]"
_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}
OPTIONAL: Final = frozenset({"redis", "replica", "blob_store", "mcp"})


@router.get("/healthz")
async def healthz() -> Response:
    """This replica lives."""
    return json_answer({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """Each dependency and its state. 503 without one that is needed, degraded without another."""
    checks = await checks_of(request)
    down = [name for name, check in checks.items() if check["status"] != "ok"]
    status = "unavailable" if set(down) - OPTIONAL else "degraded" if down else "ready"
    headers = {"Retry-After": "2"} if status == "unavailable" else None
    return json_answer({"status": status, "checks": checks}, 503 if status == "unavailable" else 200, headers)


async def checks_of(request: Request) -> Checks:
    """Give the state of every dependency: asked once for all requests of the same half second."""
    deps, state = deps_of(request), request.app.state
    if not hasattr(state, "checks"):
        state.checks = Refreshed(partial(_probe, deps), age_s=CHECKS_AGE_S)
    checks: Checks = await state.checks.get()
    return checks


async def _probe(deps: Deps) -> Checks:
    """Ask every dependency at once, each with a short time-out."""
    ports = deps.ports
    probes: dict[str, Callable[[], Awaitable[object]]] = {
        "database": deps.backends.probe_database,
        "redis": deps.backends.probe_redis,
        "ray": ports.ray,
        "scheduler": ports.scheduler.health,
        "registry": ports.registry.health,
        "tokens": ports.tokens.health,
        "mcp": ports.mcp.health,
    }
    if deps.backends.blobs.place:
        probes["blob_store"] = deps.backends.blobs.probe
    answers = await asyncio.gather(*(_check(each, deps.settings.probe_timeout_s) for each in probes.values()))
    checks = dict(zip(probes, answers, strict=True))
    replica = deps.backends.reads.state
    if replica is not None:
        checks["replica"] = _replica(replica)
    return checks


def _replica(state: ReplicaState) -> dict[str, Any]:
    """As the watch saw it: it looks about once a second, whoever asks."""
    lag = {"lag_s": None if state.lag_s is None else round(state.lag_s, 1), "lag_bytes": state.lag_bytes}
    if state.fault is None:
        return {"status": "ok", "ms": 0.0, "details": lag}
    return {"status": "down", "error": f"the replica {state.fault}", "ms": 0.0, "details": lag}


async def _check(asked: Callable[[], Awaitable[object]], timeout_s: float) -> dict[str, Any]:
    started_at = perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            details = await asked()
    except Exception as error:  # noqa: BLE001 - whatever it is, the dependency did not answer
        # Messages may hold addresses or credentials; the kind of error says enough here.
        return {"status": "down", "error": type(error).__name__, "ms": _ms(started_at)}
    answer: dict[str, Any] = {"status": "ok", "ms": _ms(started_at)}
    if isinstance(details, Mapping) and details:
        answer["details"] = dict(details)
    return answer


def _ms(started_at: float) -> float:
    return round((perf_counter() - started_at) * 1000, 1)


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of ``/metrics``: for all, and for admins besides, with ids of users, keys and tasks."""

    common: bytes
    admin: bytes


@router.get("/metrics")
async def metrics(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)],
    header: Annotated[str | None, Security(KEY_HEADER)],
) -> Response:
    """Prometheus text: what the database and Redis hold, and what this replica counts of itself.

    Needs no key. With the key of an admin it also names whose limits are nearly used up.
    """
    deps, state = deps_of(request), request.app.state
    if not hasattr(state, "metrics_text"):
        state.metrics_text = Refreshed(partial(_text, deps), age_s=METRICS_AGE_S)
    is_admin = False
    if bearer is not None or header:
        # Without the database nothing can be said of a key, and the rest is told all the same.
        with suppress(Transient):
            is_admin = (await authenticate(request, bearer, header)).is_admin
    text: _Text = await state.metrics_text.get()
    shown = text.common + text.admin if is_admin else text.common
    return Response(shown + _own(state.measures, deps.backends.reads), media_type=CONTENT_TYPE_LATEST)


async def _text(deps: Deps) -> _Text:
    counts = await _if_there(deps.backends.reads.current(read_counts))
    totals = await _if_there(read_totals(deps.backends.primary))
    shared = _shared(counts, totals, await deps.backends.waiting())
    asked = ask(deps.ports.tokens.figures(), "the token controller", timeout_s=deps.settings.probe_timeout_s)
    figures = await _if_there(asked)
    common = shared + await _breakers(deps) + (b"" if figures is None else token_text(figures))
    return _Text(common, b"" if figures is None else share_text(figures))


async def _if_there(answer: Awaitable[T]) -> T | None:
    """Await an answer; None while the one that is asked is away."""
    with suppress(Transient):
        return await answer
    return None


async def _breakers(deps: Deps) -> bytes:
    """One line a breaker, as this replica knows them; none while the registry has never answered."""
    own = CollectorRegistry()
    state = Gauge("rayloom_breaker_state", "0: closed, 1: half open, 2: open.", ("breaker",), registry=own)
    with suppress(Transient):
        now = time()
        for tool in (await deps.offered.all()).values():
            view = deps.offered.breaker_of(tool.name)
            state.labels(tool.breaker_key).set(0 if view is None else _STATES[view.state_at(now)])
    return generate_latest(own)


def _shared(counts: Counts | None, totals: Totals | None, waiting: Mapping[str, int] | None) -> bytes:
    own = CollectorRegistry()
    up = Gauge("rayloom_up", "1 when the dependency answers.", ("dependency",), registry=own)
    up.labels("database").set(counts is not None)
    up.labels("redis").set(waiting is not None)
    if counts is not None:
        tasks = Gauge("rayloom_tasks", "Unfinished tasks by status.", ("status",), registry=own)
        for status, count in counts.tasks.items():
            tasks.labels(status).set(count)
        subtasks = Gauge("rayloom_subtasks", "Subtasks that are not settled, or BLOCKED.", ("status",), registry=own)
        for status, count in counts.subtasks.items():
            subtasks.labels(status).set(count)
        Gauge("rayloom_schedulers_live", "Schedulers that say that they live.", registry=own).set(counts.schedulers)
    if totals is not None:
        own.register(TotalCounts(totals))
    if waiting is not None:
        queue = Gauge("rayloom_queue_waiting", "Ready subtasks in Redis, by resource shape.", ("shape",), registry=own)
        for shape, count in waiting.items():
            queue.labels(shape).set(count)
    return generate_latest(own)


def _own(measures: Measures, reads: ReadSplit) -> bytes:
    registry = CollectorRegistry()
    registry.register(ReadCounts(reads))
    admission = measures.admission
    if admission is not None:
        Gauge("rayloom_http_requests_open", "Requests under way here.", registry=registry).set(admission.requests)
        Gauge("rayloom_http_streams_open", "Event streams open here.", registry=registry).set(admission.streams)
    return generate_latest(registry) + generate_latest(measures.registry)
