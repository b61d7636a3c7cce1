"""Runs in sandboxes become Ray's metrics, under names that don't change."""

from __future__ import annotations

import pytest
from ray.util.metrics import Counter, Histogram

from rayloom.actors import sandbox_counts
from rayloom.tools.sandbox import measures
from rayloom.tools.sandbox.measures import Run, Stages


def test_a_run_is_counted_with_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, dict[str, str]]] = []

    def keep(metric: Counter | Histogram, value: float, tags: dict[str, str]) -> None:
        told.append((metric.info["name"], value, tags))

    monkeypatch.setattr(Counter, "inc", keep)
    monkeypatch.setattr(Histogram, "observe", keep)
    sandbox_counts.count_run(Run(backend="docker", warm=True, start_s=0.01, first_output_s=None, total_s=0.2))
    assert told == [
        ("rayloom_sandbox_runs_total", 1, {"backend": "docker", "start": "warm"}),
        ("rayloom_sandbox_seconds", 0.01, {"backend": "docker", "stage": "start"}),
        ("rayloom_sandbox_seconds", 0.2, {"backend": "docker", "stage": "total"}),
    ]


def test_stages_are_told_in_their_order_to_whoever_listens() -> None:
    found: list[Run] = []
    lines: list[str] = []
    measures.listen(found.append)
    try:
        stages = Stages("docker")
        sink = stages.first(lambda _stream, line: lines.append(line))
        stages.stood(warm=True)
        for line in ("a", "b"):
            sink("stdout", line)
        stages.tell()
    finally:
        measures.ignore(found.append)
    Stages("docker").tell()
    (run,) = found
    assert lines == ["a", "b"]
    assert (run.backend, run.warm) == ("docker", True)
    assert run.first_output_s is not None
    assert 0 <= run.start_s <= run.first_output_s <= run.total_s
