"""Hostile programs in every kind of sandbox: each has its verdict, and neither the host nor a neighbour notices."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.values import Json
from tests.integration.tools.hostile.attack import PRELUDE, Attack
from tests.integration.tools.hostile.escapes import ESCAPES
from tests.integration.tools.hostile.lies import LIES
from tests.integration.tools.hostile.resources import RESOURCES
from tests.integration.tools.sandboxes import Kind, run

ATTACKS = (*RESOURCES, *ESCAPES, *LIES)
# Of the escapes those that our guardian holds in a machine elsewhere; against the others stand machines of E2B's own,
# which a local service has none of.
ELSEWHERE = {
    *(attack.name for attack in (*RESOURCES, *LIES)),
    "environments of all processes",
    "canary of the host by its path",
    "files written where all is read-only",
    "files of its own interpreter",
    "rights of root",
    "tracing the first process",
    "memory of the first process",
    "signals to all that it can reach",
    "a first process made helpless",
}
SECRET = "7f9c-do-not-tell"


@dataclass(frozen=True, slots=True)
class Host:
    """What of the host a program is told to go for."""

    canary: Path
    port: int


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """A file, a secret in the environment, servers on the loopback and on an abstract name; all as before after it."""
    monkeypatch.setenv("RAYLOOM_SECRET_KEY", SECRET)
    canary = tmp_path / "canary"
    canary.write_text(SECRET)
    canary.chmod(0o644)
    reached: list[str] = []

    def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append("a server of the host")
        writer.close()

    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0rayloom-hostile-test")
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    named = await asyncio.start_unix_server(refuse, sock=abstract)
    before, clock_s = _state(), _clock_s()
    async with server, named:
        yield Host(canary=canary, port=server.sockets[0].getsockname()[1])
    assert not reached
    assert canary.read_text() == SECRET
    assert _state() == before
    assert abs(_clock_s() - clock_s) < 60


def _state() -> dict[str, object]:
    """What no program may change. Mounts are those of this process's namespace, without an engine's own."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {
        "name": socket.gethostname(),
        "mounts": [each for each in mounts if not re.search(r"/overlay2/|/netns/|/containers/|docker|rayloom", each)],
        "core_pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
        "user": (os.getuid(), os.getgid()),
        "workers": os.getpid(),
    }


def _clock_s() -> float:
    """By how much the clock of the wall is ahead of the one that nobody can set."""
    return time.time() - time.monotonic()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
async def test_a_hostile_program_is_contained(kind: Kind, attack: Attack, host: Host) -> None:
    if kind == "e2b" and attack.name not in ELSEWHERE:
        pytest.skip("it is for E2B's own machines to hold")
    began = time.monotonic()
    output, neighbour = await asyncio.gather(
        _attacked(kind, attack, host),
        run(kind, code="import time; time.sleep(0.1); open('mine', 'w').write('x'); print('fine')", limits={"pids": 9}),
    )
    assert time.monotonic() - began < attack.within_s
    assert (neighbour["exit_code"], neighbour["stdout"], list(neighbour["files"])) == (0, "fine\n", ["mine"])
    said = output["stdout"] + output["stderr"]
    assert "ESCAPED" not in said
    assert SECRET not in said
    ended = {name: value for name, value in output.items() if name not in {"stdout", "stderr", "files"}}
    assert output["exit_code"] in attack.exit_codes, f"{ended}\n{said[-2_000:]}"
    assert {name: output[name] for name in attack.verdict} == dict(attack.verdict), said[-2_000:]
    assert re.match(attack.says, output["stdout"]), said[-2_000:]
    if attack.files is not None:
        assert tuple(output["files"]) == attack.files
    # And nothing stands in the way of whoever comes next.
    assert (await run(kind, "shell.run", command="echo fine"))["stdout"] == "fine\n"


async def _attacked(kind: Kind, attack: Attack, host: Host) -> Any:
    limits: dict[str, Json] = {"wall_s": 25, **attack.limits}
    shell = attack.code.startswith("#!sh\n")
    given = f"{host.canary} {os.getpid()} {host.port}"
    if shell:
        return await run(kind, "shell.run", command=attack.code.removeprefix("#!sh\n"), stdin=given, limits=limits)
    return await run(kind, code=PRELUDE + attack.code, stdin=given, limits=limits)


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 60
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert {attack.name for attack in ATTACKS} >= ELSEWHERE
