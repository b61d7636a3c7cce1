"""What Ray and Serve say of themselves in the process of `rayloom up`: kept in its log, not put on its terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

_log = logging.getLogger(__name__)


def keep_out_of_the_terminal() -> None:
    """From now on. Ray prints what goes on in a cluster (workers started, actors ended) with no switch for it."""
    import ray.serve  # noqa: F401 - it sets the level of its log when it is imported
    from ray._private import worker

    _log.setLevel(logging.INFO)
    worker.print_to_stdstream = _keep
    # Serve's notes of its own start; what is wrong still shows.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _keep(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    for line in data["lines"]:
        _log.info("ray.said: %s", line)
