"""The kinds of node that Ray's autoscaler could add, from the file that it was started with.

Ray tells nobody: a cluster's state names live nodes only. Without this file a request for what only a new node could
give would be refused, and nothing would ever make the cluster grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from rayloom.cluster.checks import StartRefused
from rayloom.dag.resources import NodeShape

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its file on the head of a cluster."""


def node_types(given: Path | None, ray_address: str) -> tuple[NodeShape, ...]:
    """The kinds of node in the ``given`` file, or in that of `ray up` when we run on such a cluster; else none.

    Raises StartRefused, with one line that says what to do.
    """
    path = (given or BOOTSTRAP).expanduser()
    if given is None and (not ray_address or not path.is_file()):
        return ()
    try:
        return _read(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it is no configuration of Ray's autoscaler ({type(error).__name__})"
    raise StartRefused(f"{path} can't be read: {reason}; let RAYLOOM_RAY_CLUSTER_FILE name the file of `ray up`")


def _read(path: Path) -> tuple[NodeShape, ...]:
    config = yaml.safe_load(path.read_text())
    at_most = int(config.get("max_workers", 2))
    shapes = []
    for name, kind in config["available_node_types"].items():
        # As Ray does: the head is one node that is there already, and a type without a number may fill the cluster.
        default = 0 if name == config["head_node_type"] else at_most
        given = kind.get("max_workers")
        shapes.append(
            NodeShape(
                total=_amounts(kind.get("resources") or {}),
                labels={str(label): str(value) for label, value in (kind.get("labels") or {}).items()},
                count_max=min(default if given is None else int(given), at_most),
            )
        )
    return tuple(shape for shape in shapes if shape.count_max > 0)


def _amounts(resources: Mapping[str, object]) -> dict[str, float]:
    return {str(name): float(str(amount)) for name, amount in resources.items()}
