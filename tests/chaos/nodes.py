"""A Ray cluster of several nodes on this machine, in one process: ``python -m tests.chaos.nodes HEAD_CPUS PORT``.

It says its address and then does what it is told, a line each: ``add`` starts one more worker node. It ends, with all
nodes, when its input ends.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 100_000_000


def _node(cpus: int) -> dict[str, Any]:
    return {
        "num_cpus": cpus,
        "resources": {"sandbox": cpus * 4},
        "object_store_memory": OBJECT_STORE_BYTES,
        "node_ip_address": "127.0.0.1",
        "include_dashboard": False,
    }


def main(head_cpus: int, port: int) -> None:
    # Always the same port: `rayloom up` waits there for a head that was killed.
    cluster = Cluster(initialize_head=True, head_node_args={**_node(head_cpus), "gcs_server_port": port})
    sys.stdout.write(json.dumps({"address": cluster.address}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        command, _, cpus = line.strip().partition(" ")
        assert command == "add", line
        cluster.add_node(wait=False, **_node(int(cpus)))
        sys.stdout.write(json.dumps({"added": True}) + "\n")
        sys.stdout.flush()
    cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray ships it untyped


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
