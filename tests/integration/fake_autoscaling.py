"""A private Ray cluster on this machine whose autoscaler starts and stops nodes that are only processes.

Ray's own `AutoscalingCluster` can't be used: the wheel lacks a file that it reads, and it stops every Ray of the
machine. The node provider behind it works when it is named as an external one. Everything here (ports, folder,
processes) belongs to one cluster, so several may run, and a developer's own Ray is left alone.

    with FakeAutoscalingCluster(node_types=[...]) as cluster:
        ...                                        # give cluster.address to whoever brings demand
        cluster.wait_for_nodes({"cpu": 2}, timeout_s=120)
"""

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
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Any

from tests.integration.ports import free_ports

RAY = str(Path(sys.executable).with_name("ray"))
HEAD_TYPE = "ray.head.default"  # the provider knows its head by no other name
HEAD_ID = "f" * 51 + "00000"
# Set in every process of a cluster, so that its processes can be told from all others at the end.
MARK = "RL_TEST_CLUSTER"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """One type of worker node: what each node offers, and how many there may be."""

    name: str
    resources: Mapping[str, int]
    max_workers: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_config(self) -> dict[str, Any]:
        """The entry of the autoscaler's ``available_node_types``."""
        return {
            "resources": {**self.resources, "object_store_memory": 100_000_000},
            "labels": dict(self.labels),
            "node_config": {},
            "min_workers": 0,
            "max_workers": self.max_workers,
        }


class FakeAutoscalingCluster:
    """A head node with Ray's autoscaler (v2), and a watcher of the nodes that it starts and stops.

    ``idle_timeout_s`` is how long a node must be idle before it goes. Use it as a context manager.
    """

    def __init__(self, node_types: Sequence[NodeType], *, head_cpus: int = 0, idle_timeout_s: float = 6) -> None:
        # Short, because Ray puts sockets below it, and a socket's path may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="rlas", dir="/tmp"))
        self.config_file = self._folder / "autoscaling.json"
        self._port, dashboard_port, client_port = free_ports(3)
        self._command = [
            RAY, "start", "--head", "--block", "--disable-usage-stats", f"--port={self._port}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            f"--ray-client-server-port={client_port}", "--dashboard-agent-listen-port=0",
            f"--temp-dir={self._folder}", f"--autoscaling-config={self.config_file}",
            f"--num-cpus={head_cpus}", "--object-store-memory=200000000",
        ]  # fmt: skip
        self.address = f"127.0.0.1:{self._port}"
        # What a process needs to be in it as a driver: RAYLOOM_RAY_ADDRESS of a rayloom goes beside these.
        token = self._folder / "auth_token"
        token.write_text(secrets.token_hex())
        self.environment: Mapping[str, str] = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            MARK: str(self._folder),
        }
        self._config = _autoscaling_config(node_types, head_cpus, self.address, idle_timeout_s)
        self._seen: list[Counter[str]] = []
        self._changed = threading.Condition()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> FakeAutoscalingCluster:
        self.config_file.write_text(json.dumps(self._config))
        try:
            self._spawn(
                self._command,
                {
                    "RAY_FAKE_CLUSTER": "1",
                    "RAY_enable_autoscaler_v2": "1",
                    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
                },
                "head.log",
            )
            watcher = self._spawn([sys.executable, "-c", _WATCHER, self.address], {}, "watcher.log", piped=True)
            assert watcher.stdout is not None
            threading.Thread(target=self._follow, args=[watcher.stdout], daemon=True).start()
            self.wait_for_nodes({}, timeout_s=90)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def nodes(self) -> Mapping[str, int]:
        """How many worker nodes of each type are alive now; a type without any is absent."""
        with self._changed:
            return dict(self._seen[-1]) if self._seen else {}

    @property
    def history(self) -> list[Mapping[str, int]]:
        """Every set of worker nodes that was seen, oldest first, each different from the one before."""
        with self._changed:
            return [dict(nodes) for nodes in self._seen]

    def wait_for_nodes(self, wanted: Mapping[str, int], *, timeout_s: float) -> None:
        """Return when exactly these worker nodes are alive (``{}``: none). Raises AssertionError after the time."""
        end = monotonic() + timeout_s
        with self._changed:
            while not self._seen or self._seen[-1] != Counter(wanted):
                if any(process.poll() is not None for process in self._processes):
                    raise AssertionError(f"a process of the cluster ended:\n{self.logs()}")
                left_s = end - monotonic()
                if left_s <= 0:
                    raise AssertionError(f"wanted {dict(wanted)}, saw {self._seen}\n{self.logs()}")
                self._changed.wait(min(left_s, 1))

    def logs(self) -> str:
        """The ends of the logs of the head, the watcher and the autoscaler."""
        files = [*self._folder.glob("*.log"), *self._folder.glob("session_latest/logs/monitor*")]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-2_000:]}" for file in files)

    def stop(self) -> None:
        """End every process of this cluster and remove its folder; done twice it does nothing."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        # A fake node is a child of the autoscaler and has a session of its own: it may outlive the head.
        for attempt in range(50):
            pids = self._pids()
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if attempt == 0 else signal.SIGKILL)
            threading.Event().wait(0.2)
        self._forget()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """`kill -9` of the head and all that it started, and of no driver; entered again it is at the same address."""
        sessions = {process.pid for process in self._processes}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[3]) in sessions:
                    os.kill(int(stat.parent.name), signal.SIGKILL)
        self._forget()

    def _forget(self) -> None:
        for process in self._processes:
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()
        self._seen.clear()

    def _spawn(
        self, command: Sequence[str], extra: Mapping[str, str], log: str, *, piped: bool = False
    ) -> subprocess.Popen[str]:
        with (self._folder / log).open("w") as sink:
            process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def _follow(self, lines: IO[str]) -> None:
        with suppress(ValueError):  # the pipe is closed when the cluster stops
            for line in lines:
                with self._changed:
                    self._seen.append(Counter(json.loads(line)))
                    self._changed.notify_all()

    def _pids(self) -> list[int]:
        marks = (f"{MARK}={self._folder}".encode(), str(self._folder).encode())
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):  # it ended meanwhile, or is another user's
                if marks[0] in (entry / "environ").read_bytes() or marks[1] in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


# Ray's client of the cluster's state reads RAY_AUTH_MODE once per process, so it gets a process. One line a change.
_WATCHER = """
import json, sys, threading
from collections import Counter
from ray.autoscaler.v2.sdk import get_cluster_status
last, pause = None, threading.Event()
while True:
    try:
        status = get_cluster_status(sys.argv[1])
    except Exception as error:                       # the head is not up yet
        print(repr(error), file=sys.stderr, flush=True)
        pause.wait(1)
        continue
    nodes = [node.ray_node_type_name for node in status.active_nodes + status.idle_nodes]
    if "ray.head.default" in nodes:
        nodes.remove("ray.head.default")
        if nodes != last:
            print(json.dumps(Counter(nodes)), flush=True)
        last = nodes
    pause.wait(0.5)
"""


def _autoscaling_config(
    node_types: Sequence[NodeType], head_cpus: int, address: str, idle_timeout_s: float
) -> dict[str, Any]:
    empty_lists = (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )  # fmt: skip
    return {
        "cluster_name": "rayloom-fake",
        "max_workers": sum(each.max_workers for each in node_types),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_timeout_s / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            **{each.name: each.as_config() for each in node_types},
        },
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty_lists},
    }
