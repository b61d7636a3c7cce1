"""Keeps the gRPC port of a Serve replica on the address of its node.

Read in Ray 2.60, `ray/serve/_private/replica.py`: once the constructor of a deployment has run, its replica binds a
gRPC server for calls between deployments to ``[::]:0``, every interface of the machine, and the first thing that
server does with a request is to unpickle it. There is no setting for the address. Whoever has to reach it (only with
RAY_SERVE_USE_GRPC_BY_DEFAULT=1) uses the address of the node, so that one is enough, and on a local Ray it is loopback.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final

_log = logging.getLogger(__name__)

MODULE: Final = "ray.serve._private.replica"
BINDER: Final = "add_port_to_grpc_server"
"""The name by which the replica's module calls what binds the port."""
EVERYWHERE: Final = frozenset({"[::]", "0.0.0.0"})


def stay_on_node_address() -> None:
    """Have the replica of this process bind its port to its node's address; to be called by its constructor.

    Changes nothing, and says so in the log as an error, in a Ray where the replica binds in another way.
    """
    try:
        replica = importlib.import_module(MODULE)
        bind = getattr(replica, BINDER)
    except (ImportError, AttributeError):
        _log.error("replica.port_open: no %s in %s; the replica may listen on all interfaces", BINDER, MODULE)
        return
    if isinstance(bind, _OnNodeAddress):
        return
    setattr(replica, BINDER, _OnNodeAddress(bind))


class _OnNodeAddress:
    def __init__(self, bind: Any) -> None:
        self._bind = bind

    def __call__(self, server: Any, address: str) -> int:
        host, _, port = address.rpartition(":")
        if host in EVERYWHERE:
            address = f"{_node_address()}:{port}"
        number: int = self._bind(server, address)
        return number


def _node_address() -> str:
    import ray

    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return f"[{address}]" if ":" in address else address
