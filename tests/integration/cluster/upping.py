"""`rayloom up` with a stand-in for Ray and Serve: ``upping.py serve|demo|external|json|slow|break|absent``.

The supervisor, its services, signals and files are the real ones, and the driver is a process. Ray has its own tests.
``break`` does not start; ``absent`` does not start a second time before the file ``back`` is there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import typer

from rayloom.cluster import bringup, head, head_process
from rayloom.cluster.checks import ClusterAbsent, StartRefused
from rayloom.cluster.cli.program import run
from rayloom.cluster.settings import Settings
from rayloom.db.settings import DatabaseSettings, RedisSettings


@dataclass
class StandIn:
    api_key: str = "rl_key"
    urls: dict[str, str] = field(default_factory=lambda: {"api": "http://127.0.0.1:1"})

    async def stop(self) -> None:
        # Where nothing can be said, this still tells.
        (Path(os.environ["RAYLOOM_HOME"]) / "stopped").touch()
        with suppress(OSError):
            typer.echo("stand-in stopped")


def drive(how: str, arguments: list[str]) -> int:
    """Be the driver."""
    started = Path(os.environ["RAYLOOM_HOME"]) / "started"

    async def start(
        _settings: Settings, database: DatabaseSettings, redis: RedisSettings, *, exclusive: bool, llama: object
    ) -> StandIn:
        assert database.dsn_given
        assert redis.dsn_given
        assert exclusive == (how != "external")
        if how != "json":
            with suppress(OSError):
                typer.echo("stand-in starts")
        if how == "slow":
            await asyncio.sleep(3600)
        if how == "break":
            raise StartRefused("Ray does not start: do this")
        if how == "absent" and started.exists() and not started.with_name("back").exists():
            raise ClusterAbsent("no Ray cluster answers")
        started.touch()
        return StandIn()

    bringup.start = start  # type: ignore[assignment]
    return head.main(arguments)


def main(how: str) -> int:
    """Be `rayloom up`."""
    head_process.PROGRAM = (str(Path(__file__)), "head", how)
    return run(["up", *([] if how == "demo" else ["--no-demo"]), *(["--json"] if how == "json" else [])])


if __name__ == "__main__":
    if sys.argv[1] == "head":
        sys.exit(drive(sys.argv[2], sys.argv[3:]))
    sys.exit(main(sys.argv[1]))
