"""Queued demand makes the cluster grow, and idleness makes it shrink.

First with plain Ray, so that the fake cluster itself is proven, then with a rayloom that is a guest of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest

from rayloom.dag.values import JsonObject
from tests.integration.engine.silence import Server
from tests.integration.fake_autoscaling import FakeAutoscalingCluster, NodeType
from tests.integration.instance import running
from tests.integration.runs import Run, step

# The types and resources of ray-cluster.yaml, small enough for two cores.
NODE_TYPES = (
    NodeType(name="cpu", resources={"CPU": 1, "sandbox": 2}, max_workers=2, labels={"pool": "cpu"}),
    NodeType(name="gpu", resources={"CPU": 1, "GPU": 1, "sandbox": 2}, max_workers=1, labels={"pool": "gpu"}),
)
SANDBOXED = {"CPU": 0.5, "sandbox": 1.0}
ON_GPU = {"CPU": 0.5, "GPU": 1.0}
# A fake node is a whole raylet: on a loaded machine one may take half a minute to start.
UP_S, DOWN_S, RUN_S = 120, 120, 60
pytestmark = pytest.mark.timeout(900)


class PlainRayDemand:
    """Ray tasks, one for each request, brought by a driver process of their own.

    They wait until they are released, so that growth does not depend on how fast anything is.
    """

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


def test_queued_subtasks_scale_it_up_and_rayloom_alone_holds_no_node(cluster: FakeAutoscalingCluster) -> None:
    before = len(cluster.history)
    environ = {
        **cluster.environment,
        "RAYLOOM_RAY_ADDRESS": cluster.address,
        "RAYLOOM_RAY_CLUSTER_FILE": str(cluster.config_file),
    }
    with running(**environ) as instance, instance.client() as client, Server(b"{}", held=True) as server:
        # The scheduler, the other singletons and the API ask for nothing that a node must be started for.
        assert cluster.nodes == {}
        ask: JsonObject = {"url": server.url}
        resources: JsonObject = {"num_cpus": 0.5, "custom": {"sandbox": 1}}
        plan = [step(f"s{i}", "http.request", ask, resources=resources) for i in range(4)]
        run = Run.submit(instance, client, [*plan, step("last", "core.noop", {}, "s0", "s1", "s2", "s3")])
        cluster.wait_for_nodes({"cpu": 2}, timeout_s=UP_S)
        for i in range(4):
            run.until_executing(f"s{i}")
        server.release()
        run.completed()
        run.expect_sound()
        cluster.wait_for_nodes({}, timeout_s=DOWN_S)
        gpu = Run.submit(instance, client, [step("gpu", "core.noop", {}, resources={"num_gpus": 1})])
        gpu.completed(within_s=UP_S)
        assert "gpu" in {name for nodes in cluster.history[before:] for name in nodes}
        cluster.wait_for_nodes({}, timeout_s=DOWN_S)
        with instance.http() as http:
            never = http.post(
                "/tasks", json={"plan": {"subtasks": [step("s", "core.noop", {}, resources={"num_cpus": 2})]}}
            )
        assert never.status_code == 422
        assert never.json()["errors"][0]["pointer"] == "/plan/subtasks/0/resources"
