"""A local service that speaks E2B's protocol, for the real SDK, and misbehaves when it is told to.

The control plane is REST with a key in X-API-Key. What is in a machine is reached by way of its id and its token in
headers: Connect RPC with JSON (streams in envelopes of five bytes), /files and /health. `python -m … ` prints the port,
and serves until its standard input ends. What is below /stand-in is no part of the protocol.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.integration.tools.e2b_machine import Machine

KEY: Final = "e2b_" + "0f" * 20
VERSION: Final = "0.6.2"
TEMPLATES: Final = ("base", "empty")
LONGEST_S: Final = 3_600
PAGE: Final = 100

machines: dict[str, Machine] = {}
by_idempotency_key: dict[str, str] = {}
faults: dict[str, Any] = {}
seen: list[dict[str, Any]] = []
waiting: set[str] = set()
hurry: Final = asyncio.Event()


def problem(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"code": status, "message": message}, status, headers=headers)


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
        shown |= {"allowInternetAccess": asked.get("allow_internet_access"), "network": asked.get("network") or {}}
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


def inside(request: Request) -> Machine | Response:
    """The machine that a request is for, or what the proxy before it answers."""
    machine = machines.get(request.headers.get("e2b-sandbox-id", ""))
    if machine is None or request.headers.get("e2b-sandbox-port") != "49983":
        return problem(502, "The sandbox was not found")
    if request.headers.get("x-access-token") != machine.token:
        return problem(401, "access token invalid")
    return machine


async def health(request: Request) -> Response:
    found = inside(request)
    return found if isinstance(found, Response) else Response(status_code=204)


async def files(request: Request) -> Response:
    machine = inside(request)
    if isinstance(machine, Response):
        return machine
    if request.query_params.get("username") != "root":
        return problem(401, "this stand-in knows root only")
    path = request.query_params.get("path", "")
    if request.method == "GET":
        if "lies" in faults and path.endswith("/out"):
            return Response(base64.b64decode(faults["lies"]), media_type="application/octet-stream")
        try:
            return Response(machine.path(path).read_bytes(), media_type="application/octet-stream")
        except OSError:
            return problem(404, f"path '{path}' does not exist")
    if "full" in faults:
        return problem(507, "not enough disk space available")
    written = []
    async with request.form() as form:
        for part in form.getlist("file"):
            assert isinstance(part, UploadFile)
            name = path or part.filename or ""
            machine.write(name, await part.read())
            written.append({"name": os.path.basename(name), "path": name, "type": "file"})
    return JSONResponse(written)


def envelope(message: dict[str, Any], flags: int = 0) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(data)) + data


def event(**kinds: dict[str, Any]) -> bytes:
    return envelope({"event": kinds})


async def start(request: Request) -> Response:
    machine = inside(request)
    if isinstance(machine, Response):
        return machine
    if request.headers.get("authorization") != "Basic " + base64.b64encode(b"root:").decode():
        return JSONResponse({"code": "unauthenticated", "message": "invalid username"}, 401)
    asked = json.loads((await request.body())[5:])
    wanted = asked["process"]
    # An empty template has no Python that anybody could find.
    bare = ["/usr/bin/env", "PATH=/nowhere"] if machine.asked["templateID"] == "empty" else []
    command = [*bare, wanted["cmd"], *wanted.get("args", [])]
    process = await machine.start(
        command, wanted.get("envs", {}), wanted.get("cwd", "/"), stdin=asked.get("stdin", True)
    )
    return StreamingResponse(told(machine, process), media_type="application/connect+json")


async def told(machine: Machine, process: asyncio.subprocess.Process) -> AsyncIterator[bytes]:
    yield event(start={"pid": process.pid})
    queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=16)

    async def pump(name: str, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(32_768):
            await queue.put((name, data))
        await queue.put((name, b""))

    assert process.stdout is not None
    assert process.stderr is not None
    pumps = [asyncio.ensure_future(pump(n, s)) for n, s in (("stdout", process.stdout), ("stderr", process.stderr))]
    try:
        is_open, said = 2, 0
        while is_open:
            name, data = await queue.get()
            if data:
                yield event(data={name: base64.b64encode(data).decode()})
                said += 1
            else:
                is_open -= 1
            if said > 1 and "vanish" in faults:
                machines.pop(machine.id, None)
                await machine.kill()
                raise ConnectionAbortedError("as it was told to")
            if said and "long message" in faults:
                yield struct.pack(">BI", 0, 1 << 31)
                await machine.gone.wait()
            while said and "endless" in faults and not machine.gone.is_set():
                yield event(data={"stdout": base64.b64encode(b"x" * 32_768).decode()})
                await asyncio.sleep(0)
        code = await process.wait()
        killed = code < 0
        if machine.gone.is_set():
            gone = f"the connection to sandbox {machine.id} ended before the stream completed"
            yield envelope({"error": {"code": "unavailable", "message": gone}}, 2)
            return
        yield event(end={"exitCode": -1 if killed else code, "exited": not killed, "status": f"exit status {code}"})
        yield envelope({}, 2)
    finally:
        for each in pumps:
            each.cancel()


async def told_something(request: Request) -> Response:
    """SendInput and SendSignal, of which only SIGKILL is asked for."""
    machine = inside(request)
    if isinstance(machine, Response):
        return machine
    asked = await request.json()
    process = machine.processes.get(int(asked["process"]["pid"]))
    if process is None or process.returncode is not None:
        return JSONResponse({"code": "not_found", "message": "process not found"}, 404)
    if request.url.path.endswith("SendSignal"):
        process.kill()
    elif process.stdin is not None and "deaf" not in faults:
        process.stdin.write(base64.b64decode(asked["input"]["stdin"]))
    return JSONResponse({})


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
        Route("/health", health),
        Route("/files", files, methods=["GET", "POST"]),
        Route("/process.Process/Start", start, methods=["POST"]),
        Route("/process.Process/SendInput", told_something, methods=["POST"]),
        Route("/process.Process/SendSignal", told_something, methods=["POST"]),
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
