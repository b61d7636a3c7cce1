"""A local service that speaks E2B's protocol, for the real SDK, and misbehaves when it is told to.

The control plane is REST with a key in X-API-Key; what is inside a machine is in `e2b_envd`. `python -m …` prints the
port, and serves until its standard input ends. What is below /stand-in is no part of the protocol.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
from contextlib import suppress
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.integration.tools.e2b_envd import ROUTES, faults, machines, problem
from tests.integration.tools.e2b_machine import Machine

KEY: Final = "e2b_" + "0f" * 20
VERSION: Final = "0.6.2"
TEMPLATES: Final = ("base", "empty", "loose", "small")
LONGEST_S: Final = 3_600
PAGE: Final = 100

by_idempotency_key: dict[str, str] = {}
seen: list[dict[str, Any]] = []
waiting: set[str] = set()
hurry: Final = asyncio.Event()


def refusal(request: Request, place: str) -> Response | None:
    """The answer to a request without the key, or that is to fail."""
    fault = faults.get(place)
    if fault and fault["times"] > 0:
        fault["times"] -= 1
        return problem(fault["status"], fault["message"], **fault.get("headers", {}))
    return None if request.headers.get("x-api-key") == KEY else problem(401, "invalid API key")


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def about(machine: Machine) -> dict[str, Any]:
    asked = machine.asked
    shown: dict[str, Any] = {
        "templateID": asked["templateID"],
        "sandboxID": machine.id,
        "clientID": "local",
        "envdVersion": VERSION,
        "startedAt": moment(machine.began_at),
        "endAt": moment(machine.ends_at),
        "state": "running",
        "cpuCount": 2,
        "memoryMB": 512,
        "diskSizeMB": 1024,
        "metadata": asked.get("metadata") or {},
    }
    if "forgets the network" not in faults:
        shown |= {
            "allowInternetAccess": asked.get("allow_internet_access"),
            "network": dict(asked.get("network") or {}),
        }
    for fault, name in (("forgets name servers", "dnsServers"), ("forgets public traffic", "allowPublicTraffic")):
        if fault in faults:
            shown["network"].pop(name, None)
    return shown


async def create(request: Request) -> Response:
    if answer := refusal(request, "create"):
        return answer
    asked = await request.json()
    seen.append(asked)
    if asked["templateID"] not in TEMPLATES:
        return problem(404, f"template '{asked['templateID']}' not found")
    if asked.get("timeout", 300) > LONGEST_S:
        return problem(400, "Timeout cannot be greater than 1 hours")
    key = request.headers.get("idempotency-key", secrets.token_hex(8))
    identifier = by_idempotency_key.setdefault(key, secrets.token_hex(10))
    if "slow" in faults:
        waiting.add(identifier)
        await hurry.wait()
        waiting.discard(identifier)
    if identifier not in machines:
        machines[identifier] = Machine(identifier, asked)
    machine = machines[identifier]
    made = about(machine) | {"envdAccessToken": machine.token, "domain": None}
    return JSONResponse(made, 201)


async def listed(request: Request) -> Response:
    if answer := refusal(request, "list"):
        return answer
    wanted = [pair.partition("=")[::2] for pair in request.query_params.get("metadata", "").split("&") if pair]
    found = [each for each in machines.values() if all(each.asked["metadata"].get(k) == v for k, v in wanted)]
    first = int(request.query_params.get("nextToken", "0"))
    page = min(int(request.query_params.get("limit", PAGE)), PAGE)
    more = {"x-next-token": str(first + page)} if len(found) > first + page else {}
    return JSONResponse([about(each) for each in found[first : first + page]], headers=more)


async def one(request: Request) -> Response:
    if answer := refusal(request, "kill" if request.method == "DELETE" else "info"):
        return answer
    machine = machines.get(request.path_params["id"])
    if machine is None:
        return problem(404, "sandbox not found")
    if request.method == "GET":
        return JSONResponse(about(machine))
    del machines[machine.id]
    await machine.kill()
    return Response(status_code=204)


async def stand_in(request: Request) -> Response:
    """What it is told to do wrong from now on, in place of what it was told before; and what it has seen."""
    if request.method == "POST":
        faults.clear()
        faults.update(await request.json())
        seen.clear()
        hurry.clear()
        if "slow" not in faults:
            hurry.set()
    running = {each.id: each.asked["metadata"] for each in machines.values()}
    return JSONResponse({"machines": running, "waiting": sorted(waiting), "seen": seen})


async def expire() -> None:
    while True:
        for machine in list(machines.values()):
            if time.time() > machine.ends_at:
                del machines[machine.id]
                await machine.kill()
        await asyncio.sleep(0.2)


app: Final = Starlette(
    routes=[
        Route("/v2/sandboxes", create, methods=["POST"]),
        Route("/v2/sandboxes", listed),
        Route("/sandboxes/{id}", one, methods=["GET", "DELETE"]),
        *ROUTES,
        Route("/stand-in", stand_in, methods=["GET", "POST"]),
    ]
)


async def serve() -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    serving = asyncio.ensure_future(server.serve(sockets=[listening]))
    expiring = asyncio.ensure_future(expire())
    print(listening.getsockname()[1], flush=True)  # noqa: T201 - to who started it
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    expiring.cancel()
    for machine in list(machines.values()):
        await machine.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(5):
            await serving


if __name__ == "__main__":
    asyncio.run(serve())
