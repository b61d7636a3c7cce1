"""Figures of both sides, as a Markdown table and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.shapes import Workload

SIDES = ("rayloom", "plain Ray")


@dataclass(slots=True, kw_only=True)
class Report:
    """All that was measured: a list of figures, one a repetition, for each side and each figure's name."""

    settings: dict[str, Any]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def add(self, side: str, figure: str, value: float) -> None:
        """One repetition's figure."""
        self.figures[figure][side].append(value)

    def as_markdown(self, workloads: Sequence[Workload]) -> str:
        """The table. The ratio is rayloom's speed over plain Ray's, so more than 1 is faster, whatever the unit."""
        rows = [
            "| workload | shape | unit | rayloom | plain Ray | ratio |",
            "|---|---|---|---|---|---|",
        ]
        for workload in workloads:
            for figure, sides in self.figures.items():
                if figure.split(" ")[0] != workload.name:
                    continue
                ratio = self._ratio(figure, workload.higher_is_better)
                shown = [_shown(sides.get(side, [])) for side in SIDES]
                cells = [figure, workload.what, workload.unit, *shown, "–" if ratio is None else f"{ratio:.2f}"]
                rows.append(f"| {' | '.join(cells)} |")
        return "\n".join(rows)

    def as_json(self, workloads: Sequence[Workload]) -> dict[str, Any]:
        """Everything, with each repetition's figure."""
        better = {workload.name: workload.higher_is_better for workload in workloads}
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "load_1m": os.getloadavg()[0], "platform": platform.platform()},
            "versions": {"python": platform.python_version(), "ray": version("ray"), "rayloom": version("rayloom")},
            "settings": self.settings,
            "figures": {
                figure: {
                    "ratio": self._ratio(figure, better[figure.split(" ")[0]]),
                    **{side: {"median": statistics.median(each), "all": each} for side, each in sides.items()},
                }
                for figure, sides in self.figures.items()
            },
        }

    def _ratio(self, figure: str, higher_is_better: bool) -> float | None:
        ours, theirs = (self.figures[figure].get(side) for side in SIDES)
        if not ours or not theirs:
            return None
        ratio = statistics.median(ours) / statistics.median(theirs)
        return ratio if higher_is_better else 1 / ratio


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "–"
    low, middle, high = (f"{each:.3g}" if each < 100 else f"{each:.0f}" for each in _spread(values))
    return f"{middle} [{low}–{high}]"


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), statistics.median(values), max(values)
