"""The plans of a chaos run: mixed DAGs of `drill.step`, with other tools beside them, and what each must give."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

from rayloom.dag.values import JsonObject
from tests.chaos.drill import MODULUS

TOOL: Final = "drill.step"
CALL: Final = "http.request"
PATIENT: Final = 12
"""Retries of a subtask: more than a run could ever kill of one, so that only what is meant to fail fails."""
CALL_PATIENT: Final = 60
"""The same for a call of what is down for a while, should no breaker hold it back meanwhile."""
TIMEOUT_S: Final = 30.0
FILE_BYTES: Final = 2_000
LARGE_BYTES: Final = 100_000
"""More than is kept in a row of PostgreSQL."""
ANSWER: Final = 200
"""What a call of the target gives in the end."""
FALLS_BACK: Final = 0.4
"""The share of the calls that have a fallback. The others wait for the breaker, so that one of them is its probe."""
Edges = Sequence[Sequence[int]]


def chain(length: int) -> Edges:
    """One after the other."""
    return [[], *([node - 1] for node in range(1, length))]


def fan(width: int) -> Edges:
    """1 → width → 1; a diamond, where the width is small."""
    return [[], *([0] for _ in range(width)), list(range(1, width + 1))]


def layered(chance: random.Random, *, layers: int, width: int) -> Edges:
    """Each node after 1 to 4 of the layer before; then one sink after all that nothing else waits for."""
    edges: list[list[int]] = [[] for _ in range(width)]
    for layer in range(1, layers):
        before = range((layer - 1) * width, layer * width)
        edges += [sorted(chance.sample(before, chance.randint(1, min(4, width)))) for _ in range(width)]
    waited_for = {each for above in edges for each in above}
    return [*edges, [node for node in range(layers * width) if node not in waited_for]]


def some_edges(chance: random.Random) -> Edges:
    """Of one of these forms."""
    match chance.choice(["chain", "fan", "diamond", "layered"]):
        case "chain":
            return chain(chance.randint(5, 25))
        case "fan":
            return fan(chance.randint(10, 40))
        case "diamond":
            return fan(3)
        case _:
            return layered(chance, layers=chance.randint(3, 6), width=chance.randint(3, 12))


def value_of(
    edges: Edges, *, weights: Mapping[int, int] | None = None, stands_in: Mapping[int, int] | None = None
) -> int:
    """What the last node gives. ``weights``: of those that have another; ``stands_in``: for what is missing."""
    values: list[int] = []
    for node, above in enumerate(edges):
        weight = (weights or {}).get(node, node + 1)
        value = (weight + sum(values[each] for each in above)) % MODULUS
        values.append((stands_in or {}).get(node, value))
    return values[-1]


def step(chance: random.Random, node: int, above: Sequence[int], more: JsonObject) -> JsonObject:
    """A node as a subtask; ``more`` goes over its fields, but for its ``input``, which goes over that of its input."""
    input_: JsonObject = {
        "weight": node + 1,
        "values": [{"$ref": f"n{each}.output.value"} for each in above],
        "seconds": round(chance.choice([0.0, 0.02, 0.2, chance.uniform(0, 1)]), 3),
    }
    if chance.random() < 0.05 and not more:
        input_ |= {"fails": chance.randint(1, 2), "kind": "transient"}
    over = more.get("input", {})
    assert isinstance(over, dict)
    made: JsonObject = {
        "id": f"n{node}", "type": "TOOL", "tool": TOOL, "depends_on": [f"n{each}" for each in above],
        "max_retries": PATIENT, "timeout_s": TIMEOUT_S,
    }  # fmt: skip
    return made | more | {"input": input_ | over}


def with_file(chance: random.Random, steps: list[JsonObject]) -> int:
    """A file beside the others; gives what that adds to the result."""
    _join(steps, _aside("file", "files.write", {"path": "drill.txt", "content": _hex(chance, FILE_BYTES)}), "size")
    return FILE_BYTES


def with_large(chance: random.Random, steps: list[JsonObject]) -> int:
    """An input and an output that are kept by reference; gives what that adds to the result."""
    value: JsonObject = {"size": LARGE_BYTES, "text": _hex(chance, LARGE_BYTES)}
    _join(steps, _aside("large", "core.echo", {"value": value}), "size")
    return LARGE_BYTES


def with_box(steps: list[JsonObject]) -> int:
    """A program in a sandbox; gives what that adds to the result."""
    _join(steps, _aside("box", "python.run", {"code": "print(6 * 7)"}), "exit_code")
    return 0


def with_calls(chance: random.Random, steps: list[JsonObject], url: str, count: int) -> int:
    """Calls of something outside that may be down; gives what they add to the result.

    Some have a fallback, to which they turn when the breaker is open. It gives the same: the result tells nothing of
    the way that was taken.
    """
    for number in range(count):
        call = _aside(f"call{number}", CALL, {"url": url, "method": "POST", "json": {"number": number}})
        if chance.random() < FALLS_BACK:
            answer: JsonObject = {"value": {"status": ANSWER}}
            call |= {"on_failure": "fallback", "fallback": {"tool": "core.echo", "input": answer}}
        _join(steps, call | {"max_retries": CALL_PATIENT}, "status")
    return ANSWER * count


def _aside(id_: str, tool: str, input_: JsonObject) -> JsonObject:
    return {
        "id": id_, "type": "TOOL", "tool": tool, "input": input_, "depends_on": ["n0"],
        "max_retries": PATIENT, "timeout_s": TIMEOUT_S,
    }  # fmt: skip


def _join(steps: list[JsonObject], aside: JsonObject, field: str) -> None:
    """Put a step between the first and the last one; ``field`` of its output is added up there."""
    values = steps[-1]["input"]["values"]  # type: ignore[index,call-overload]  # made above
    values.append({"$ref": f"{aside['id']}.output.{field}"})  # type: ignore[union-attr]
    steps.insert(len(steps) - 1, aside)


def _hex(chance: random.Random, size: int) -> str:
    return chance.randbytes(size // 2).hex()
