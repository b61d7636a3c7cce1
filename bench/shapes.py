"""The DAGs of the workloads, and what is measured on each of them.

A shape is only its dependencies: node i may depend on nodes before it. Every node is a no-op.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A DAG: for each node the nodes that it depends on, all of them earlier ones."""

    dependencies: tuple[tuple[int, ...], ...]

    @property
    def sinks(self) -> tuple[int, ...]:
        """The nodes that nothing depends on."""
        needed = {each for dependencies in self.dependencies for each in dependencies}
        return tuple(node for node in range(len(self.dependencies)) if node not in needed)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRun:
    """One node as it ran: seconds since the epoch, and how many attempts it took."""

    started_at: float
    finished_at: float
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Shapes submitted at once: seconds from the first submit to the last result, and every node's run."""

    seconds: float
    nodes: tuple[tuple[NodeRun, ...], ...]


class Side(Protocol):
    """Something that runs shapes: rayloom, or plain Ray."""

    def run(self, shapes: Sequence[Shape]) -> Run:
        """Submit all of them at once and wait for all results. Raises BrokenRun when one of them is wrong."""


class BrokenRun(Exception):
    """A repetition that must not count: a node missing, repeated or too early, or a wrong value."""


def verify(shapes: Sequence[Shape], run: Run) -> None:
    """Each node ran exactly once, and none began before its dependencies ended. Raises BrokenRun."""
    for shape, nodes in zip(shapes, run.nodes, strict=True):
        for node, dependencies in enumerate(shape.dependencies):
            if nodes[node].attempts != 1:
                raise BrokenRun(f"node {node} took {nodes[node].attempts} attempts")
            for dependency in dependencies:
                if nodes[dependency].finished_at > nodes[node].started_at:
                    raise BrokenRun(f"node {node} began before its dependency {dependency} had ended")


def fan(width: int) -> Shape:
    """1 → width → 1."""
    middle = range(1, width + 1)
    return Shape(dependencies=((), *((0,) for _ in middle), tuple(middle)))


def chain(length: int) -> Shape:
    """One after the other."""
    return Shape(dependencies=((), *((node - 1,) for node in range(1, length))))


def diamond() -> Shape:
    """a → b, c, d → e."""
    return fan(3)


def layered(*, layers: int, width: int, seed: int) -> Shape:
    """Layers of equal width; each node depends on 1 to 5 nodes of the three layers before it, 3 on average."""
    dice = random.Random(seed)
    dependencies: list[tuple[int, ...]] = [()] * width
    for layer in range(1, layers):
        reach = range(max(0, layer - 3) * width, layer * width)
        for _ in range(width):
            near = dice.randrange((layer - 1) * width, layer * width)
            others = dice.sample(reach, dice.randint(0, 4))
            dependencies.append(tuple(sorted({near, *others})))
    return Shape(dependencies=tuple(dependencies))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A named measurement: figures by name, of which ``higher_is_better`` says how to read them."""

    name: str
    what: str
    unit: str
    higher_is_better: bool
    measure: Callable[[Side], Mapping[str, float]]


def _run(side: Side, shapes: Sequence[Shape]) -> float:
    run = side.run(shapes)
    verify(shapes, run)
    return run.seconds


def _rate(shapes: Sequence[Shape]) -> Callable[[Side], Mapping[str, float]]:
    count = sum(len(shape.dependencies) for shape in shapes)
    return lambda side: {"": count / _run(side, shapes)}


def _per_hop(length: int) -> Callable[[Side], Mapping[str, float]]:
    return lambda side: {"": _run(side, [chain(length)]) * 1_000 / length}


def _latency(times: int) -> Callable[[Side], Mapping[str, float]]:
    def measure(side: Side) -> Mapping[str, float]:
        millis = [_run(side, [diamond()]) * 1_000 for _ in range(times)]
        cuts = statistics.quantiles(millis, n=20, method="inclusive")
        return {"p50": statistics.median(millis), "p95": cuts[-1]}

    return measure


def workloads(seed: int) -> tuple[Workload, ...]:
    """All of them; ``seed`` makes W5 the same DAG in each repetition and on both sides."""
    return (
        Workload(
            name="W1", what="1 → 1000 → 1", unit="nodes/s", higher_is_better=True, measure=_rate([fan(1_000)])
        ),
        Workload(
            name="W2", what="chain of 100", unit="ms/hop", higher_is_better=False, measure=_per_hop(100)
        ),
        Workload(
            name="W3t", what="200 diamonds at once", unit="nodes/s", higher_is_better=True,
            measure=_rate([diamond()] * 200),
        ),
        Workload(
            name="W3l", what="one diamond, idle, 50 times", unit="ms", higher_is_better=False, measure=_latency(50)
        ),
        Workload(
            name="W5", what="random layered DAG of 1000", unit="nodes/s", higher_is_better=True,
            measure=_rate([layered(layers=20, width=50, seed=seed)]),
        ),
    )  # fmt: skip
