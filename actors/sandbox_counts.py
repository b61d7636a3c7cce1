"""Runs in sandboxes, counted by way of Ray's metrics: a worker process has no page of its own to show them on."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from rayloom.tools.sandbox.measures import Run

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Histogram

BOUNDS_S: Final = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


def count_run(run: Run) -> None:
    """A run is over."""
    seconds, runs = _metrics()
    runs.inc(1, tags={"backend": run.backend, "start": "warm" if run.warm else "cold"})
    stages = {"start": run.start_s, "first_output": run.first_output_s, "total": run.total_s}
    for stage, taken_s in stages.items():
        if taken_s is not None:
            seconds.observe(taken_s, tags={"backend": run.backend, "stage": stage})


@cache
def _metrics() -> tuple[Histogram, Counter]:
    """Made by the first run: most workers never have one."""
    from ray.util.metrics import Counter, Histogram

    seconds = Histogram(
        "rayloom_sandbox_seconds",
        description="From the call: until the sandbox stood, to the first line, to the end.",
        boundaries=BOUNDS_S,
        tag_keys=("backend", "stage"),
    )
    runs = Counter(
        "rayloom_sandbox_runs_total",
        description="Runs in sandboxes, by whether one was waiting.",
        tag_keys=("backend", "start"),
    )
    return seconds, runs
