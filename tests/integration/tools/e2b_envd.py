"""What is inside the machines of the local E2B service: processes and files, each by the machine's id and token.

Connect RPC with JSON: calls as plain bodies, streams in envelopes of five bytes; /files and /health beside it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.integration.tools.e2b_machine import Machine

machines: Final[dict[str, Machine]] = {}
faults: Final[dict[str, Any]] = {}


def problem(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"code": status, "message": message}, status, headers=headers)


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
        if "holds files back" in faults:
            await machine.gone.wait()
        try:
            return Response(machine.path(path).read_bytes(), media_type="application/octet-stream")
        except OSError:
            return problem(404, f"path '{path}' does not exist")
    if "full" in faults:
        # Read to its end: who answers before that may cut the connection before the answer is read.
        await request.body()
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
    if "talks" in faults:
        machine.write("/etc/profile", b"echo welcome; echo 'not a tty' >&2\n")
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
        # The program has begun when both of its streams have said so.
        is_open, spoke = 2, set[str]()
        while is_open:
            name, data = await queue.get()
            if data:
                yield event(data={name: base64.b64encode(data).decode()})
                spoke.add(name)
            else:
                is_open -= 1
            begun = len(spoke) == 2
            if begun and "vanish" in faults:
                machines.pop(machine.id, None)
                await machine.kill()
                raise ConnectionAbortedError("as it was told to")
            if begun and "long message" in faults:
                yield struct.pack(">BI", 0, 1 << 31)
                await machine.gone.wait()
            while begun and "endless" in faults and not machine.gone.is_set():
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


ROUTES: Final = (
    Route("/health", health),
    Route("/files", files, methods=["GET", "POST"]),
    Route("/process.Process/Start", start, methods=["POST"]),
    Route("/process.Process/SendInput", told_something, methods=["POST"]),
    Route("/process.Process/SendSignal", told_something, methods=["POST"]),
)
