"""The own lane, as far as it goes without Ray."""

from __future__ import annotations

from typing import Any

from rayloom.actors import lanes
from rayloom.actors.lanes import KNOWN_SHAPES, OwnLane
from rayloom.dag.resources import ResourceShape

ANY_SETTINGS: Any = None


async def test_the_options_of_shapes_that_nobody_asks_for_any_more_are_forgotten(monkeypatch: Any) -> None:
    monkeypatch.setattr(lanes, "_Ends", lambda _loop: None)
    made: list[float] = []

    class Function:
        def options(self, *, num_cpus: float, num_gpus: float) -> None:
            made.append(num_cpus)

    monkeypatch.setattr("ray.remote", lambda **_options: lambda _function: Function())
    lane = OwnLane(ANY_SETTINGS)
    for cpus in (1, 1, *range(2, KNOWN_SHAPES + 2), 1):
        assert lane._options(ResourceShape(cpus=cpus)) == {"num_cpus": cpus, "num_gpus": 0}
    assert made == [1, *range(2, KNOWN_SHAPES + 2), 1], "each is checked by Ray once while it is known"
