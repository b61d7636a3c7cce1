"""What a chaos run is done to: a rayloom of its own, on a Ray of several nodes of its own, with the drill installed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rayloom.dag.errors import Transient
from rayloom.serve.answers import Rejected
from tests.chaos import drill
from tests.chaos.history import BLOB_GRACE_S
from tests.chaos.plans import TOOL
from tests.integration.instance import Instance
from tests.integration.ports import free_ports
from tests.integration.processes import MARK, Process, processes_of
from tests.integration.waiting import wait_until

HEAD_CPUS, WORKER_CPUS = 2, 2
NODES_S, READY_S, NODE_TRIES = 120.0, 300.0, 3
ROOT = Path(__file__).resolve().parents[2]
POINTS = "[rayloom.tools]\nchaos_step = rayloom_chaos_drill:STEP\n"
# What `rayloom up` tells a Ray of its own, told here to the one that it joins.
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_event_stats": "0",
    "RAY_task_events_max_num_task_in_gcs": "10000",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "15",
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1000000",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class Rig:
    """Use it as a context manager, and start it; afterwards nothing of it is left.

    ``workers``: Ray nodes beside the head's.
    """

    def __init__(self, *, workers: int, faults: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rlch", dir="/tmp"))
        self._workers = workers
        self._nodes: subprocess.Popen[str] | None = None
        (self._port,) = free_ports(1)
        self.packages = self.folder / "packages"
        self.up_at = 0.0
        """When `rayloom up` was called, the last time; by the monotonic clock."""
        extra = {
            "PYTHONPATH": str(self.packages),
            "RAYLOOM_LEASE_S": "10",
            "RAYLOOM_BLOB_GRACE_S": str(BLOB_GRACE_S),
            # Its failures here are wanted, and more than a user would bear.
            "RAYLOOM_RAY_FAILURES": "1000",
            # What is down here is so for seconds: a breaker that stays open for minutes would only make waiting.
            "RAYLOOM_BREAKER_COOLDOWN_S": "1",
            "RAYLOOM_BREAKER_COOLDOWN_MAX_S": "8",
            **({"RAYLOOM_FAULTS": faults} if faults else {}),
        }
        self.instance = Instance(self.folder, None, extra)
        self._install_drill()

    @property
    def has_nodes(self) -> bool:
        """Whether its Ray has nodes beside the head's; without, `rayloom up` starts Ray."""
        return bool(self._workers)

    @property
    def ledger(self) -> Path:
        """Where the drill leaves its marks."""
        return self.packages / drill.LEDGER.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def start(self) -> None:
        """Start Ray and rayloom, or start them again on the same home; return when it serves, with the drill on."""
        if self._workers:
            self._start_nodes()
        self.up_at = time.monotonic()
        self.instance.start()
        wait_until(self._has_drill, within_s=READY_S, every_s=0.5, what=self.instance.said)

    def processes(self, title: str = "") -> list[Process]:
        """Its living processes whose command line holds ``title``."""
        return self.instance.processes(title)

    def add_node(self) -> None:
        """Start one more Ray node, in place of one that was killed."""
        self._ask(f"add {WORKER_CPUS}")

    def restart_nodes(self) -> None:
        """Start all Ray nodes again at the same address, after the head was killed; nothing of the old ones is left."""
        nodes, self._nodes = self._nodes, None
        assert nodes is not None
        below = {nodes.pid}
        seen = self.processes()
        while more := {each.pid for each in seen if each.parent in below} - below:
            below |= more
        old = [each for each in seen if each.pid in below or "raylet" in each.title or each.title.startswith("ray::")]
        for each in old:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        nodes.communicate()
        wait_until(lambda: not [each for each in old if each.is_alive], within_s=NODES_S)
        self._start_nodes()

    def cut_the_power(self) -> int:
        """`kill -9` of everything at once; answers of how many processes."""
        killed = 0
        while found := processes_of(self.folder):
            for each in found:
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            killed = max(killed, len(found))
            self._reap()
        return killed

    def destroy(self) -> None:
        """Make an end of all of it."""
        self.cut_the_power()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _has_drill(self) -> bool:
        try:
            with self.instance.client() as client:
                client.post("/api/v1/tools/register", {"type": "NATIVE", "name": TOOL, "endpoint": "chaos_step"})
        except Rejected:
            # An earlier start has registered it, or one whose answer was lost.
            return True
        except Transient:
            return False
        return True

    def _reap(self) -> None:
        with suppress(Exception):
            self.instance.kill()
        if self._nodes is not None:
            self._nodes.kill()
            self._nodes.communicate()
            self._nodes = None

    def _start_nodes(self) -> None:
        token = self.folder / "ray_token"
        token.write_text(secrets.token_hex())
        ray = {**RAY, "RAY_AUTH_TOKEN_PATH": str(token)}
        # Ray gives a node 30 s to start, which a machine that is busy with other tests may not keep.
        for tries_left in reversed(range(NODE_TRIES)):
            with (self.folder / "nodes.log").open("ab") as sink:
                self._nodes = subprocess.Popen(
                    [sys.executable, "-m", "tests.chaos.nodes", str(HEAD_CPUS), str(self._port)],
                    cwd=ROOT, env={**self.instance.environ, **ray, MARK: str(self.folder)},
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, text=True,
                )  # fmt: skip
            patience = threading.Timer(NODES_S, self._nodes.kill)
            patience.start()
            try:
                self.instance.environ |= {**ray, "RAYLOOM_RAY_ADDRESS": str(self._told()["address"])}
                break
            except AssertionError:
                if not tries_left:
                    raise
                self.cut_the_power()
            finally:
                patience.cancel()
        for _ in range(self._workers):
            self.add_node()
        wait_until(lambda: len(self.processes("raylet/raylet")) > self._workers, within_s=NODES_S)

    def _ask(self, command: str) -> None:
        assert self._nodes is not None
        assert self._nodes.stdin is not None
        self._nodes.stdin.write(command + "\n")
        self._nodes.stdin.flush()
        assert self._told() == {"added": True}

    def _told(self) -> Any:
        assert self._nodes is not None
        assert self._nodes.stdout is not None
        while not (line := self._nodes.stdout.readline()).startswith("{"):
            assert line, f"the Ray nodes did not start: {(self.folder / 'nodes.log').read_text()[-2_000:]}"
        return json.loads(line)

    def _install_drill(self) -> None:
        info = self.packages / "rayloom_chaos_drill-1.0.dist-info"
        info.mkdir(parents=True)
        shutil.copy(Path(drill.__file__), self.packages / "rayloom_chaos_drill.py")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rayloom-chaos-drill\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(POINTS)
