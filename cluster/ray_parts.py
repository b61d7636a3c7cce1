"""Parts of a local Ray, seen from the driver that started it: start one again, and say which workers ended by accident.

Ray restarts its actors itself. It restarts neither the dashboard nor the two monitors, and works on without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

Part = Literal["dashboard", "log_monitor", "monitor"]
_EXPECTED: Final = ("INTENDED_SYSTEM_EXIT", "INTENDED_USER_EXIT", "USER_ERROR")


def restart(part: Part) -> None:
    """Start a part of the head again that has ended. Raises what Ray raises when it does not come up."""
    from ray._private import worker

    node: Any = worker._global_node
    for info in node.all_processes.pop(part, ()):
        # Of the dashboard only a helper may have ended.
        info.process.kill()
        info.process.wait()
    match part:
        case "dashboard":
            node.start_api_server(include_dashboard=True, raise_on_failure=True)
        case "log_monitor":
            node.start_log_monitor()
        case "monitor":
            node.start_monitor()


def unexpected_ends(pids: Iterable[int]) -> dict[str, str]:
    """Say why each of these worker processes ended, by its number; those that were meant to end are left out.

    A worker that Ray has no end of yet is left out, too, as it may have ended before Ray knew it.
    """
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    rows: Any = gcs_pb2
    kinds: Any = common_pb2
    wanted, found = set(pids), {}
    for row in state._connect_and_get_accessor().get_worker_table():
        worker = rows.WorkerTableData.FromString(row)
        if worker.pid in wanted and not worker.is_alive:
            kind = kinds.WorkerExitType.Name(worker.exit_type)
            if kind not in _EXPECTED:
                found[str(worker.pid)] = f"{kind}: {worker.exit_detail.strip()}"
    return found
