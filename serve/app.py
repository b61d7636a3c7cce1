"""The HTTP application: built in each replica, from what opens its dependencies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import compile_path

from rayloom.serve import problems
from rayloom.serve.deps import Deps
from rayloom.serve.gate import Gate
from rayloom.serve.mcp import door
from rayloom.serve.mcp.server import make_server
from rayloom.serve.measures import Measures
from rayloom.serve.routes import (
    approvals,
    audit,
    events,
    health,
    invocations,
    letters,
    logs,
    pages,
    people,
    plans,
    quotas,
    retries,
    subtasks,
    tasks,
    tools,
    traces,
    waiting,
    webhooks,
)
from rayloom.serve.settings import ServeSettings

ROUTERS: Final = (
    tasks.router, approvals.router, retries.router, letters.router, subtasks.router, waiting.router, events.router,
    logs.router, traces.router, plans.router, tools.router, invocations.router, people.router, quotas.router,
    audit.router, webhooks.router, door.router, health.router, pages.router,
)  # fmt: skip


def build_app(settings: ServeSettings, open_deps: Callable[[], Deps]) -> FastAPI:
    """The application. ``open_deps`` is called once, in the event loop that serves the requests."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        deps = open_deps()
        app.state.deps = deps
        deps.start()
        try:
            yield
        finally:
            await deps.close()

    measures = Measures()
    app = FastAPI(
        title="rayloom",
        version=_version(),
        summary="Turns a complex request into a DAG of subtasks and runs it, durably, on a Ray cluster.",
        lifespan=lifespan,
        # Pages that need no network take the place of FastAPI's own (see routes/pages.py).
        docs_url=None,
        redoc_url=None,
        # A redirect has an empty body and would be followed with another method: a wrong path is a 404.
        redirect_slashes=False,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )
    app.state.measures = measures
    app.state.mcp = make_server(app.version)
    for router in ROUTERS:
        app.include_router(router)
    app.state.methods_of = _method_table()
    problems.install(app)
    app.add_middleware(Gate, settings=settings, measures=measures)
    return app


def _method_table() -> Callable[[str], set[str]]:
    """Which methods a path takes."""
    table = [
        (compile_path(route.path)[0], route.methods)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
    ]

    def methods_of(path: str) -> set[str]:
        return {method for pattern, methods in table if pattern.match(path) for method in methods or ()}

    return methods_of


def _version() -> str:
    try:
        return version("rayloom")
    except PackageNotFoundError:
        return "0"
