"""Queued demand makes the cluster grow, and idleness makes it shrink.

First with plain Ray, so that the fake cluster itself is proven. `Demand` is the seam: whatever brings subtasks to a
cluster by its address and can say where they ran takes the place of `PlainRayDemand`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import pytest

from tests.integration.fake_autoscaling import FakeAutoscalingCluster, NodeType

# The types and resources of ray-cluster.yaml, small enough for two cores.
NODE_TYPES = (
    NodeType(name="cpu", resources={"CPU": 1, "sandbox": 2}, max_workers=2, labels={"pool": "cpu"}),
    NodeType(name="gpu", resources={"CPU": 1, "GPU": 1, "sandbox": 2}, max_workers=1, labels={"pool": "gpu"}),
)
SANDBOXED = {"CPU": 0.5, "sandbox": 1.0}
ON_GPU = {"CPU": 0.5, "GPU": 1.0}
# A fake node is a whole raylet: on a loaded machine one may take half a minute to start.
UP_S, DOWN_S, RUN_S = 120, 120, 60


class Demand(Protocol):
    """Work that waits until it is released, so that growth does not depend on how fast anything is."""

    def release(self) -> None:
        """Let the work that has started, and all that will start, finish."""

    def node_types(self) -> list[str]:
        """Wait for all of it, and say on which type of node each piece ran."""


class PlainRayDemand:
    """Ray tasks, one for each request, brought by a driver process of their own."""

    def __init__(self, cluster: FakeAutoscalingCluster, requests: Sequence[Mapping[str, float]], folder: Path) -> None:
        self._gate = folder / "gate"
        self._driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVER, cluster.address, json.dumps([dict(each) for each in requests]), self._gate],
            env={**os.environ, **cluster.environment},
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> PlainRayDemand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._driver.kill()
        self._driver.communicate()

    def release(self) -> None:
        """Let every task finish."""
        self._gate.touch()

    def node_types(self) -> list[str]:
        """The type of node of each task, in the order of the requests."""
        out, _ = self._driver.communicate(timeout=RUN_S)
        ran: list[str] = json.loads(out.splitlines()[-1])
        return ran


_DRIVER = """
import json, os, sys, threading
import ray
address, requests, gate = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ray.init(address=address, log_to_driver=False, logging_level="error")

@ray.remote(max_retries=0)
def piece():
    while not os.path.exists(gate):
        threading.Event().wait(0.1)
    return ray.get_runtime_context().get_node_labels()["pool"]

def start(request):
    request = dict(request)
    cpus, gpus = request.pop("CPU", 0), request.pop("GPU", 0)
    return piece.options(num_cpus=cpus, num_gpus=gpus, resources=request).remote()

print(json.dumps(ray.get([start(request) for request in requests])), flush=True)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeAutoscalingCluster]:
    with FakeAutoscalingCluster(NODE_TYPES) as started:
        yield started


def test_queued_demand_scales_up_and_idleness_scales_down(cluster: FakeAutoscalingCluster, tmp_path: Path) -> None:
    assert cluster.nodes == {}
    # Each node takes two of them, so four can only run at once on two nodes.
    with PlainRayDemand(cluster, [SANDBOXED] * 4, tmp_path) as demand:
        cluster.wait_for_nodes({"cpu": 2}, timeout_s=UP_S)
        demand.release()
        assert demand.node_types() == ["cpu"] * 4
    cluster.wait_for_nodes({}, timeout_s=DOWN_S)


def test_only_a_request_for_a_gpu_starts_a_gpu_node(cluster: FakeAutoscalingCluster, tmp_path: Path) -> None:
    assert all("gpu" not in nodes for nodes in cluster.history)
    with PlainRayDemand(cluster, [ON_GPU], tmp_path) as demand:
        cluster.wait_for_nodes({"gpu": 1}, timeout_s=UP_S)
        demand.release()
        assert demand.node_types() == ["gpu"]
    cluster.wait_for_nodes({}, timeout_s=DOWN_S)
