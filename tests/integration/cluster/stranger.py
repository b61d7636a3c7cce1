"""Another user of the machine, who tries every door of a rayloom: `python stranger.py UID GID < doors.json`.

It imports all that it needs, becomes that user, reads what there is to try, and writes what it found as JSON:
``{"open": […], "heard": {door: text}}``. Nothing may be open. What was heard may hold no secret of the instance, which
the test checks: this program knows none.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - found only before we become another user
import importlib
import json
import os
import pkgutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc  # type: ignore[import-untyped]
import httpx2
import ray.core.generated
import ray.serve.generated
from ray.dashboard.optional_utils import DashboardAgentRouteTable, DashboardHeadRouteTable
from ray.dashboard.subprocesses.module import SubprocessModule
from ray.dashboard.subprocesses.routes import SubprocessRouteTable
from ray.dashboard.utils import DashboardAgentModule, DashboardHeadModule, get_all_modules

ANSWER_S: Final = 5.0
PORTS_AT_ONCE: Final = 16
HARMLESS: Final = frozenset(
    {"/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}
)
"""gRPC's own services: whether a process lives, and which services Ray's source has."""
PUBLIC: Final = frozenset(
    {
        "GET /api/authentication_mode",
        "GET /api/gcs_healthz",
        "GET /api/healthz",
        "GET /api/local_raylet_healthz",
    }
)
"""Ray's routes that say no more than that a process lives, or that a token is asked for."""
FIGURES: Final = "# HELP "
"""How Ray's metrics begin. Their port answers every path with all of them; the test reads them."""
GUESSES: Final = (
    "GET /", "GET /metrics", "GET /logs/", "GET /logs/../../../etc/passwd", "GET /static/../api/jobs/",
    "GET /static/%2e%2e/api/jobs/", "GET //api/jobs/", "GET /api/serve/applications/", "GET /-/routes",
    "GET /-/healthz", "POST /api/v1/tasks", "GET /api/v1/tasks", "GET /api/v1/keys", "POST /mcp", "GET /openapi.json",
    "GET /healthz", "GET /readyz", "GET /docs", "POST /get_or_create_runtime_env", "POST /get_runtime_envs_info",
    "POST /delete_runtime_env_if_possible",
)  # fmt: skip
OPEN_TO_ALL: Final = frozenset(
    {"GET /", "GET /metrics", "GET /-/routes", "GET /-/healthz", "GET /openapi.json", "GET /healthz", "GET /readyz"}
    | {"GET /docs"}
)
"""What may answer without a key, on one port or another; the test reads what it answers."""


def ray_routes() -> list[str]:
    """All routes of Ray's dashboard and agents: ``GET /api/jobs/`` …"""
    for kind in (DashboardHeadModule, DashboardAgentModule, SubprocessModule):
        get_all_modules(kind)  # type: ignore[no-untyped-call]
    found = set()
    for table in (DashboardHeadRouteTable, DashboardAgentRouteTable, SubprocessRouteTable):
        for method, paths in table._bind_map.items():
            found |= {f"{method} {path}" for path in paths}
    assert len(found) > 40, "Ray keeps its routes elsewhere now"
    return sorted(found)


def ray_methods() -> list[str]:
    """All methods of Ray's gRPC services: ``/ray.rpc.JobInfoGcsService/AddJob`` …"""
    found = set(HARMLESS)
    for package in (ray.core.generated, ray.serve.generated):
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_pb2"):
                described = importlib.import_module(f"{package.__name__}.{module.name}").DESCRIPTOR
                for service in described.services_by_name.values():
                    found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    assert len(found) > 150, "Ray keeps its services elsewhere now"
    return sorted(found)


class Stranger:
    def __init__(self, doors: dict[str, Any]) -> None:
        self._doors = doors
        self._authorization: str = doors.get("authorization", "")
        self.open: list[str] = []
        self.heard: dict[str, str] = {}

    def try_all(self) -> None:
        # Side by side, because many a port says nothing to what it does not understand.
        with ThreadPoolExecutor(PORTS_AT_ONCE) as pool:
            list(pool.map(self._try_port, self._doors["ports"]))
        for path in self._doors["sockets"]:
            self._connect(path)
        for path in self._doors["files"]:
            self._read(path)

    def _try_port(self, port: int) -> None:
        self._speak_grpc(port)
        self._speak_http(port)
        self._speak_redis(port)
        asyncio.run(self._speak_postgresql(port))

    def _speak_grpc(self, port: int) -> None:
        metadata = [("authorization", self._authorization)] if self._authorization else None
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method in self._doors.get("methods") or METHODS:
                door = f"{port} {method}"
                try:
                    answer = channel.unary_unary(method)(b"", timeout=ANSWER_S, metadata=metadata)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        return
                    self.heard[door] = f"{error.code()} {error.details()}"
                    if error.code() not in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}:
                        self.open.append(f"{door} {error.code()}")
                else:
                    self.heard[door] = repr(answer)
                    if method not in HARMLESS:
                        self.open.append(door)

    def _speak_http(self, port: int) -> None:
        headers = {"Authorization": self._authorization} if self._authorization else {}
        routes = self._doors.get("routes") or [*GUESSES, *ROUTES]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S, trust_env=False) as client:
            for route in routes:
                door = f"{port} {route}"
                method, _, path = route.partition(" ")
                body = {"entrypoint": self._doors["command"]} if path.endswith("/jobs/") else {}
                json_ = None if method in {"GET", "HEAD"} else body
                try:
                    answer = client.request(method, _filled(path), json=json_, headers=headers)
                except httpx2.RemoteProtocolError:
                    return  # it speaks something else
                except httpx2.HTTPError as error:
                    self.heard[door] = type(error).__name__
                    return
                self.heard[door] = f"{answer.status_code} {answer.text}"
                if answer.text.startswith(FIGURES) and route != "GET /metrics":
                    return
                if answer.is_success and route not in PUBLIC | OPEN_TO_ALL:
                    self.open.append(f"{door} {answer.status_code}")

    def _speak_redis(self, port: int) -> None:
        for command in (b"PING", b"INFO", b"AUTH default default"):
            said = _said(port, command + b"\r\n")
            self.heard[f"{port} {command.decode()}"] = said
            if said.startswith(("+", "$")):
                self.open.append(f"{port} {command.decode()}")

    async def _speak_postgresql(self, port: int) -> None:
        for user, password in (("rayloom", None), ("rayloom", "rayloom"), ("postgres", "postgres"), ("rayloom", "")):
            try:
                connection = await asyncpg.connect(
                    host="127.0.0.1", port=port, user=user, password=password, database="rayloom", timeout=ANSWER_S,
                    ssl=False,
                )  # fmt: skip
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
                self.heard[f"{port} PostgreSQL as {user}"] = str(error)
            else:
                self.open.append(f"{port} PostgreSQL as {user}")
                await connection.close()

    def _connect(self, path: str) -> None:
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(ANSWER_S)
            try:
                one.connect(address)
            except OSError as error:
                self.heard[path] = str(error.strerror)
            else:
                self.open.append(f"connect {path}")

    def _read(self, path: str) -> None:
        place = Path(path)
        try:
            what = sorted(each.name for each in place.iterdir()) if place.is_dir() else [place.read_bytes()[:1].hex()]
        except OSError as error:
            self.heard[path] = str(error.strerror)
        else:
            self.open.append(f"read {path}: {what}")


def _filled(path: str) -> str:
    """A route with something in the place of each of its variables."""
    parts = ["x" if part.startswith("{") else part for part in path.split("/")]
    return "/".join(parts)


def _said(port: int, words: bytes) -> str:
    said = b""
    with socket.socket() as one:
        one.settimeout(1)
        try:
            one.connect(("127.0.0.1", port))
            one.sendall(words)
            while len(said) < 100_000 and (more := one.recv(65_536)):
                said += more
        except OSError:
            return said.decode(errors="replace")
    return said.decode(errors="replace")


METHODS: Final = ray_methods()
ROUTES: Final = ray_routes()


def _arguments() -> Iterator[int]:
    for each in sys.argv[1:3]:
        yield int(each)


def main() -> None:
    uid, gid = _arguments()
    # Both import parts of themselves with the first use, from a folder that the stranger may not enter.
    grpc.insecure_channel("127.0.0.1:1").close()
    with suppress(httpx2.HTTPError):
        httpx2.get("http://127.0.0.1:1", trust_env=False)
    os.chdir("/")
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    stranger = Stranger(json.load(sys.stdin))
    stranger.try_all()
    sys.stdout.write(json.dumps({"open": stranger.open, "heard": stranger.heard}))


if __name__ == "__main__":
    main()
