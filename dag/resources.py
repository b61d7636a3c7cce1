"""What a subtask asks for, what a node offers, and whether the one fits into the other.

Resource names are Ray's own: ``CPU``, ``GPU``, ``memory`` (bytes), and any name that the cluster gives.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from rayloom.dag.plan import RESERVED, Resources
from rayloom.dag.values import JsonObject

BYTES_PER_MB: Final = 1_048_576
WEIGHTLESS_COPIES: Final = 64
"""How many copies of a request for nothing a node is said to hold: some number must bound it."""
FIRST_MEMORY_BYTES: Final = 2 * 1024 * BYTES_PER_MB
"""What is asked for after an attempt that asked for no memory ran out of it."""
MIN_QUANTITY: Final = 0.0001
"""The smallest share of a resource that Ray can tell from none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceShape:
    """The resources of one attempt, settled and comparable: equal requests are equal shapes.

    Few distinct shapes are good: each new one makes Ray look for workers anew.
    """

    cpus: float = 0
    gpus: float = 0
    memory_bytes: int = 0
    custom: tuple[tuple[str, float], ...] = ()
    """Sorted by name, no zeros."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by name."""

    def key(self) -> str:
        """A short text that is the same for equal shapes, in every process and release."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def as_json(self) -> JsonObject:
        """A JSON object that ``from_json`` reads back."""
        return {
            "cpus": float(self.cpus),
            "gpus": float(self.gpus),
            "memory_bytes": self.memory_bytes,
            "custom": {name: float(amount) for name, amount in self.custom},
            "labels": dict(self.labels),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> ResourceShape:
        """The shape that ``as_json`` gave. Raises KeyError, TypeError or ValueError on anything else."""
        custom, labels = raw["custom"], raw["labels"]
        if not isinstance(custom, Mapping) or not isinstance(labels, Mapping):
            raise TypeError("custom and labels of a resource shape are objects")
        return cls(
            cpus=_number(raw["cpus"]),
            gpus=_number(raw["gpus"]),
            memory_bytes=int(_number(raw["memory_bytes"])),
            custom=tuple(sorted((str(name), _number(amount)) for name, amount in custom.items())),
            labels=tuple(sorted((str(name), str(value)) for name, value in labels.items())),
        )

    def amounts(self) -> Iterator[tuple[str, float]]:
        """Every resource asked for, by Ray's name, with its amount (memory in bytes); no zeros."""
        for name, amount in (("CPU", self.cpus), ("GPU", self.gpus), ("memory", self.memory_bytes), *self.custom):
            if amount > 0:
                yield name, amount

    def __str__(self) -> str:
        asked = _amounts_text(self.amounts()) or "nothing"
        return asked + "".join(f", label {name}={value}" for name, value in self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """One type of node: what each offers in all, its labels, and how many of it there can ever be."""

    total: Mapping[str, float]
    labels: Mapping[str, str]
    count_max: int

    def __str__(self) -> str:
        offered = _amounts_text((name, amount) for name, amount in self.total.items() if _is_shown(name, amount))
        # Ray labels each node itself (ray.io/node-id …); nobody asks for those.
        labels = ((k, v) for k, v in sorted(self.labels.items()) if not k.startswith("ray.io/"))
        return (offered or "nothing") + "".join(f", label {k}={v}" for k, v in labels)


def effective(resources: Resources, defaults: Mapping[str, float], offered: Collection[str]) -> ResourceShape:
    """What a subtask really asks for: its own wishes over the defaults of its tool.

    A custom resource that only the defaults name is asked for only if some node offers it (``offered``: the names of
    all resources of all node types); one that the subtask itself names is always asked for.
    """
    custom = {name: amount for name, amount in defaults.items() if name not in RESERVED and name in offered}
    custom.update(resources.custom)
    cpus = defaults.get("CPU", 1.0) if resources.num_cpus is None else resources.num_cpus
    return ResourceShape(
        cpus=_quantum(cpus),
        gpus=_quantum(resources.num_gpus or defaults.get("GPU", 0.0)),
        memory_bytes=round(resources.memory_mb * BYTES_PER_MB) or round(defaults.get("memory", 0.0)),
        custom=tuple(sorted((name, _quantum(amount)) for name, amount in custom.items() if amount > 0)),
        labels=tuple(sorted(resources.labels.items())),
    )


def fits(shape: ResourceShape, node: NodeShape) -> bool:
    """Whether an idle node of this type could ever run it."""
    if node.count_max < 1 or any(node.labels.get(name) != value for name, value in shape.labels):
        return False
    return all(node.total.get(name, 0.0) + _EPSILON >= amount for name, amount in shape.amounts())


def copies(shape: ResourceShape, node: NodeShape) -> int:
    """How many attempts of this shape an idle node of this type holds at once; 0 where it does not fit."""
    if not fits(shape, node):
        return 0
    held = [math.floor(node.total[name] / amount + _EPSILON) for name, amount in shape.amounts()]
    return max(1, min(held)) if held else WEIGHTLESS_COPIES


def with_more_memory(shape: ResourceShape, nodes: Sequence[NodeShape]) -> ResourceShape | None:
    """The shape with twice the memory, as much of it as a node that fits can give; None where none gives more."""
    wanted = 2 * shape.memory_bytes or FIRST_MEMORY_BYTES
    given = int(max((node.total.get("memory", 0.0) for node in nodes if fits(shape, node)), default=0.0))
    raised = min(wanted, given)
    return replace(shape, memory_bytes=raised) if raised > shape.memory_bytes else None


def largest(shape: ResourceShape, nodes: Sequence[NodeShape]) -> NodeShape:
    """The node type that comes nearest to giving ``shape``: what a refusal shows. ``nodes`` must not be empty."""

    def nearness(node: NodeShape) -> tuple[int, float, float]:
        met = sum(node.total.get(name, 0.0) + _EPSILON >= amount for name, amount in shape.amounts())
        labelled = sum(node.labels.get(name) == value for name, value in shape.labels)
        return met + labelled, node.total.get("CPU", 0.0), node.total.get("memory", 0.0)

    return max(nodes, key=nearness)


_EPSILON: Final = 1e-9


def _quantum(amount: float) -> float:
    """``amount`` to the fineness that Ray knows, so that equal wishes stay equal; never rounded to nothing."""
    return max(round(float(amount), 4), MIN_QUANTITY) if amount > 0 else 0.0


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise TypeError(f"not a number: {raw!r}")
    return float(raw)


def _is_shown(name: str, amount: float) -> bool:
    """Ray gives every node a resource of its own address; nobody asks for those."""
    return amount > 0 and not name.startswith("node:") and name != "object_store_memory"


def _amounts_text(amounts: Iterator[tuple[str, float]]) -> str:
    return ", ".join(
        f"{amount / BYTES_PER_MB:,.0f} MiB memory" if name == "memory" else f"{amount:,.10g} {name}"
        for name, amount in amounts
    )
