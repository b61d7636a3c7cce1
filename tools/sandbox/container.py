"""One container for one run: what the engine is asked for, and how it is started and thrown away."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final
from uuid import uuid4

import orjson

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.sandbox import egress, owner, packages
from rayloom.tools.sandbox.engine import Engine, EngineError
from rayloom.tools.sandbox.frames import Frames
from rayloom.tools.sandbox.processes import MIB, resource_limits
from rayloom.tools.sandbox.sandbox import ENVIRONMENT, PATH
from rayloom.tools.settings import SandboxLimits

START_S: Final = 20.0
LIFETIME_S: Final = 1_800
"""A container that is asked for nothing ends by itself after so long."""
SHM_MB: Final = 64
INODES: Final = 16_384
USER: Final = "65534:65534"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a container is made for: two runs of the same shape may be handed each other's container."""

    image: str
    runtime: str
    memory_mb: int
    pids: int
    disk_mb: int
    cpus: float
    egress: str = ""
    packages: str = ""

    @classmethod
    def of(cls, image: str, runtime: str, limits: SandboxLimits, *folders: Path | None) -> Shape:
        """The shape for these limits (the others are kept from outside) and these folders of the host."""
        return cls(
            image=image,
            runtime=runtime,
            memory_mb=limits.memory_mb,
            pids=limits.pids,
            disk_mb=limits.disk_mb,
            cpus=limits.cpus,
            **dict(zip(("egress", "packages"), (str(each or "") for each in folders), strict=False)),
        )


@dataclass(slots=True, kw_only=True)
class Container:
    """A container whose warden waits for a run. ``stream`` is all that holds it: without it, it ends."""

    engine: Engine
    id: str
    shape: Shape
    stream: socket.socket
    frames: Frames = field(init=False)
    began_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.frames = Frames(self.stream)

    def is_usable(self) -> bool:
        """Whether it still waits, as far as can be known without asking."""
        if time.monotonic() - self.began_at > LIFETIME_S - 60:
            return False
        try:
            # Whatever it has to say now, even nothing more, is not what a waiting one says.
            self.stream.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def discard(self) -> None:
        """Kill it, and wait until it is gone; may be called twice."""
        self.stream.close()
        await remove(self.engine, self.id)


async def start(engine: Engine, shape: Shape) -> Container:
    """A container that waits for its run.

    Raises Refused (``SANDBOX_UNAVAILABLE``), Transient (``SANDBOX_START_FAILED``) and UserError (``LIMITS_TOO_SMALL``).
    """
    name = f"rayloom-{uuid4().hex}"
    try:
        made = await engine.ask("POST", "/containers/create", query={"name": name}, body=_request(shape))
    except EngineError as error:
        raise _cant_start(error, shape) from error
    except BaseException:
        # Nobody heard whether it was made.
        await asyncio.shield(asyncio.ensure_future(remove(engine, name)))
        raise
    identifier = str(made["Id"])
    container = None
    try:
        container = Container(engine=engine, id=identifier, shape=shape, stream=await engine.attach(identifier))
        await engine.ask("POST", f"/containers/{identifier}/start")
        await _expect_ready(container)
    except BaseException as error:
        if container is not None:
            container.stream.close()
        await asyncio.shield(asyncio.ensure_future(remove(engine, identifier)))
        if isinstance(error, EngineError):
            if error.status in (404, 409):
                raise Transient("SANDBOX_START_FAILED", f"the container is gone: {error.message}") from error
            raise _cant_start(error, shape) from error
        raise
    return container


def _cant_start(error: EngineError, shape: Shape) -> Refused | Transient | UserError:
    """What it means that the engine won't: that it can't now, unless it says what is wrong with the container."""
    said = f"the container engine starts no sandbox: {error.message}"
    if "init was OOM-killed" in error.message:
        # The runtime itself had no room in the container's memory.
        return too_little_memory(shape.memory_mb)
    # Not "runtime" alone: whatever fails in one says "OCI runtime create failed".
    hopeless = ("executable file not found", "unknown or invalid runtime", "unknown runtime")
    if error.status < 500 or any(each in error.message for each in hopeless):
        return Refused("SANDBOX_UNAVAILABLE", said)
    return Transient("SANDBOX_START_FAILED", said)


async def remove(engine: Engine, identifier: str) -> None:
    """Kill a container, and wait until it is gone."""
    with suppress(EngineError, Refused, Transient):
        await engine.ask("DELETE", f"/containers/{identifier}", query={"force": "1", "v": "1"})


def too_little_memory(memory_mb: int) -> UserError:
    """The error of a run that may not use what its container takes before it begins."""
    return UserError(
        "LIMITS_TOO_SMALL", f"/limits/memory_mb: {memory_mb} MiB are too few for a container with its interpreter"
    )


async def was_out_of_memory(container: Container) -> bool:
    """Whether the engine saw the kernel kill something of this container for its memory; False if it can't tell."""
    query = {
        "since": str(int(time.time() - (time.monotonic() - container.began_at)) - 1),
        "until": str(int(time.time()) + 1),
        "filters": orjson.dumps({"container": [container.id], "event": ["oom"]}).decode(),
    }
    try:
        return bool(await container.engine.ask("GET", "/events", query=query, within_s=5))
    except (EngineError, Refused, Transient):
        return False


async def sweep(engine: Engine) -> int:
    """Remove the containers whose owners are dead; how many there were. Where no engine answers there are none."""
    filters = orjson.dumps({"label": [owner.SANDBOX]}).decode()
    try:
        found = await engine.ask("GET", "/containers/json", query={"all": "1", "filters": filters})
    except (EngineError, Refused, Transient):
        # It is looked again later; what is wrong with the engine, a run itself will meet.
        return 0
    orphans = [str(each["Id"]) for each in found if owner.is_orphan(each.get("Labels") or {})]
    for orphan in orphans:
        await remove(engine, orphan)
    return len(orphans)


async def _expect_ready(container: Container) -> None:
    try:
        async with asyncio.timeout(START_S):
            async for letter, _ in container.frames.read():
                if letter == b"r":
                    return
    except TimeoutError:
        raise Transient("SANDBOX_START_FAILED", f"the container did not stand after {START_S:g} s") from None
    if await was_out_of_memory(container):
        raise too_little_memory(container.shape.memory_mb)
    said = container.frames.complaint.text().strip()[-500:] or "it said nothing"
    raise Refused("SANDBOX_UNAVAILABLE", f"the image's python3 does not start the program's guardian: {said}")


_BOOT: Final = (
    "import sys, types; name = 'rayloom.tools.sandbox.leftovers'; module = sys.modules[name] = types.ModuleType(name); "
    "exec(sys.argv[2], module.__dict__); exec(sys.argv[3])"
)


@cache
def _sources() -> list[str]:
    return [Path(__file__).with_name(name).read_text() for name in ("leftovers.py", "warden.py")]


def _request(shape: Shape) -> Json:
    seen = ((shape.egress, egress.INSIDE), (shape.packages, packages.INSIDE))
    # Not as "Binds": for those an engine makes what is not there any more, as an empty folder that is root's.
    binds: list[Json] = [
        {"Type": "bind", "Source": folder, "Target": place, "ReadOnly": True} for folder, place in seen if folder
    ]
    more = {"PYTHONPATH": f"/workspace:{packages.INSIDE}"} if shape.packages else {}
    proxied = {**egress.ENVIRONMENT, "RELAY": egress.RELAY} if shape.egress else {}
    start: Json = {
        "env": dict[str, Json]({**ENVIRONMENT, **proxied, **more}),
        "wrapper": ["/bin/sh", "-c", egress.WRAPPER, "sh"] if shape.egress else [],
        "lifetime_s": LIFETIME_S,
        "limits": dict[str, Json](resource_limits(shape.disk_mb)),
    }
    mounts: dict[str, Json] = {
        place: f"rw,exec,nosuid,nodev,size={size_mb}m,nr_inodes={INODES},{who}"
        for place, size_mb, who in (
            ("/workspace", shape.disk_mb, "mode=0755,uid=65534,gid=65534"),
            ("/tmp", shape.disk_mb, "mode=1777"),
            # The program, twice while it is handed over, and its standard input.
            ("/run/code", shape.disk_mb + 16, "mode=0755,uid=65534,gid=65534"),
        )
    }
    memory = shape.memory_mb * MIB
    return {
        "Image": shape.image,
        "Entrypoint": [],
        "Cmd": ["python3", "-I", "-S", "-c", _BOOT, orjson.dumps(start).decode(), *_sources()],
        "Env": [f"PATH={PATH}", "LANG=C.UTF-8"],
        "User": USER,
        "WorkingDir": "/workspace",
        "Hostname": "sandbox",
        "NetworkDisabled": True,
        "Labels": dict[str, Json](owner.labels()),
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "AutoRemove": True,
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Tmpfs": mounts,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": shape.pids + 1,  # the warden is one
            "Memory": memory,
            "MemorySwap": memory,
            # The engine refuses more than there are, and less than the kernel can count.
            "NanoCpus": int(min(max(shape.cpus, 0.01), os.cpu_count() or 1) * 1e9),
            "ShmSize": min(shape.disk_mb, SHM_MB) * MIB,
            "IpcMode": "private",
            "LogConfig": {"Type": "none"},
            **({"Mounts": binds} if binds else {}),
            **({"Runtime": shape.runtime} if shape.runtime else {}),
        },
    }
