"""The memory of every role over a soak run, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

from tests.soak.memory import MB, Sample

SHOWN_MB: Final = 60.0
"""Roles that never had so much share one line: the largest of them."""


def draw(samples: Sequence[Sample], base: int, file: Path) -> None:
    """Draw the largest process of each role over the subtasks done."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5.5), dpi=90)
    done = [sample.done / 1000 for sample in samples]
    # A role that is not there at a moment leaves a gap.
    lines: dict[str, list[float]] = {}
    for place, sample in enumerate(samples):
        for role, size in sample.largest().items():
            lines.setdefault(role, [math.nan] * len(samples))[place] = size / MB
    others: list[list[float]] = []
    for role, sizes in sorted(lines.items(), key=lambda line: -_most(line[1])):
        if _most(sizes) >= SHOWN_MB:
            axes.plot(done, sizes, label=role, linewidth=1.4)
        else:
            others.append(sizes)
    if others:
        axes.plot(done, [_most(each) for each in zip(*others, strict=True)], label="largest of all others", color="0.6")
    axes.axvline(base / 1000, color="0.4", linestyle=":", label="base")
    axes.set(xlabel="subtasks done, thousands", ylabel="memory of the largest process of a role, MB", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", frameon=False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def _most(sizes: Sequence[float]) -> float:
    return max((size for size in sizes if not math.isnan(size)), default=math.nan)
