"""How far a task is."""

from __future__ import annotations

import pytest

from rayloom.dag.states import SubtaskStatus
from rayloom.serve.shapes import progress


@pytest.mark.parametrize(
    ("completed", "running", "is_open", "percent"),
    [
        (0, 0, False, 0.0),
        (2, 1, False, 66.7),
        (2_999, 1, False, 99.9),
        (99_999, 1, False, 99.9),
        (3_000, 0, False, 100.0),
        (1, 0, True, 50.0),
        (99_999, 0, True, 99.9),
    ],
)
def test_100_percent_is_said_of_what_is_done_alone(completed: int, running: int, is_open: bool, percent: float) -> None:
    counts: dict[str, int] = {SubtaskStatus.COMPLETED: completed, SubtaskStatus.RUNNING: running}
    assert progress(counts, plan_is_open=is_open)["percent"] == percent
