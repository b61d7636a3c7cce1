"""The work of a chaos run: tasks, what is to be done to each by hand, and what they must come to. All from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from rayloom.dag.values import Json, JsonObject
from tests.chaos.drill import MODULUS
from tests.chaos.plans import Edges, some_edges, step, value_of, with_box, with_calls, with_file, with_large
from tests.chaos.receiver import SECRET

Kind = Literal[
    "whole", "broken", "default", "continue", "fallback", "mended", "held", "rejected", "plan held", "plan rejected",
    "forked", "cancelled",
]  # fmt: skip
KINDS: Final[dict[Kind, int]] = {
    "whole": 14, "broken": 2, "default": 1, "continue": 1, "fallback": 2, "mended": 6, "held": 2, "rejected": 2,
    "plan held": 1, "plan rejected": 1, "forked": 3, "cancelled": 3,
}  # fmt: skip
"""What a task is there for, and how often it is chosen among the others."""
Mend = Literal["task", "subtask", "letter", "input", "bulk"]
MENDS: Final[tuple[Mend, ...]] = ("task", "subtask", "letter", "input", "bulk")
"""How a FAILED task is made to go on: all of it, a named subtask, its letter, that with another input, or by filter."""
NEVER: Final = 1_000
DEFAULT: Final = 7
"""What stands in for the value of a step that may be missing."""
OTHER: Final = 1_000
"""What a fallback, or another input, has for its weight beyond that of the step."""
BULK: Final = {"mend": "bulk"}
"""The labels of what is retried by filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Somebody has to say yes or no, to a subtask or, without one, to the plan."""

    subtask: str | None
    approves: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """The task is to be forked when it has ended: from where, with which inputs, what it gives, who has to say yes."""

    anew: str
    inputs: JsonObject
    result: Json
    decision: Decision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A task to be submitted. ``ends``: the statuses that it may end in; ``result``: what it gives when COMPLETED.

    ``cancel_after_s``, ``again_after_s``: when it is to be cancelled, and when the same request is sent once more; None
    for most. ``chosen``: the subtask that is not like the others.
    """

    title: str
    kind: Kind
    body: JsonObject
    subtasks: int
    ends: frozenset[str]
    result: Json
    chosen: str
    cancel_after_s: float | None = None
    again_after_s: float | None = None
    decision: Decision | None = None
    mend: Mend | None = None
    fork: Fork | None = None


def works(seed: int, subtasks: int, *, outside: str, name: str = "chaos") -> Iterator[Work]:
    """Tasks until they have so many subtasks together. ``outside``: the URL of the receiver."""
    chance, count, number = random.Random(f"{seed}/{name}"), 0, 0
    while count < subtasks:
        work = _work(chance, f"{name} {seed}.{number}", outside)
        count, number = count + work.subtasks, number + 1
        yield work


def _work(chance: random.Random, title: str, outside: str) -> Work:
    edges = some_edges(chance)
    kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
    chosen = chance.randrange(len(edges) - 1)
    special = _special(chance, kind, edges, chosen)
    steps = [step(chance, node, above, special if node == chosen else {}) for node, above in enumerate(edges)]
    # What these give goes into the last step, too.
    added = 0
    if chance.random() < 0.15:
        added += with_file(chance, steps)
    if chance.random() < 0.15:
        added += with_large(chance, steps)
    if chance.random() < 0.05:
        added += with_box(steps)
    if chance.random() < 0.3:
        added += with_calls(chance, steps, f"{outside}/call", chance.randint(1, 3))
    mend = chance.choice(MENDS) if kind == "mended" else None
    body: JsonObject = {"title": title, "plan": {"subtasks": list(steps)}, "priority": chance.randint(1, 10)}
    if kind in ("plan held", "plan rejected"):
        body["require_approval"] = True
    if mend == "bulk":
        body["labels"] = dict(BULK)
    if chance.random() < 0.25:
        body |= {"callback_url": f"{outside}/hook", "callback_secret": SECRET}
    key = f"n{chosen}"
    return Work(
        title=title,
        kind=kind,
        body=body,
        subtasks=len(steps),
        ends=_ends(kind),
        result=_result(_value(kind, edges, chosen) + added),
        chosen=key,
        cancel_after_s=chance.uniform(0, 3) if kind == "cancelled" else None,
        again_after_s=chance.uniform(0, 2) if chance.random() < 0.15 else None,
        decision=_decision(kind, key),
        mend=mend,
        fork=_fork(chance, kind, edges, chosen, steps, added),
    )


def _special(chance: random.Random, kind: Kind, edges: Edges, chosen: int) -> JsonObject:
    """What the chosen step has that the others have not."""
    broken: JsonObject = {"input": {"fails": NEVER, "kind": "user"}}
    match kind:
        case "broken":
            return broken
        case "default":
            return broken | {"on_failure": "default", "default": {"value": DEFAULT}}
        case "continue":
            return broken | {"on_failure": "continue"}
        case "fallback":
            values: Json = [{"$ref": f"n{each}.output.value"} for each in edges[chosen]]
            input_: JsonObject = {"weight": chosen + 1 + OTHER, "values": values, "seconds": 0.1}
            return broken | {"on_failure": "fallback", "fallback": {"tool": "drill.step", "input": input_}}
        case "mended":
            if chance.random() < 0.5:
                return {"input": {"fails": chance.randint(1, 3), "kind": "user"}}
            return {"input": {"fails": chance.randint(2, 4), "kind": "transient"}, "max_retries": 1}
        case "held" | "rejected":
            return {"require_approval": True}
        case _:
            return {}


def _ends(kind: Kind) -> frozenset[str]:
    match kind:
        case "broken" | "rejected":
            return frozenset({"FAILED"})
        case "plan rejected":
            return frozenset({"CANCELLED"})
        case "cancelled":
            return frozenset({"COMPLETED", "CANCELLED"})
        case _:
            return frozenset({"COMPLETED"})


def _value(kind: Kind, edges: Edges, chosen: int) -> int:
    match kind:
        case "default":
            return value_of(edges, stands_in={chosen: DEFAULT})
        case "continue":
            return value_of(edges, stands_in={chosen: 0})
        case "fallback":
            return value_of(edges, weights={chosen: chosen + 1 + OTHER})
        case _:
            return value_of(edges)


def _decision(kind: Kind, chosen: str) -> Decision | None:
    match kind:
        case "held" | "rejected":
            return Decision(subtask=chosen, approves=kind == "held")
        case "plan held" | "plan rejected":
            return Decision(subtask=None, approves=kind == "plan held")
        case _:
            return None


def _fork(
    chance: random.Random, kind: Kind, edges: Edges, chosen: int, steps: list[JsonObject], added: int
) -> Fork | None:
    key, other = f"n{chosen}", chosen + 1 + OTHER
    (mine,) = [each for each in steps if each["id"] == key]
    changed: JsonObject = {key: {**mine["input"], "weight": other, "fails": 0}}  # type: ignore[dict-item]  # an object
    renewed = _result(value_of(edges, weights={chosen: other}) + added)
    if kind == "forked" and chance.random() < 0.5:
        return Fork(anew=key, inputs={}, result=_result(value_of(edges) + added))
    if kind == "forked" or (kind == "broken" and chance.random() < 0.5):
        return Fork(anew=key, inputs=changed, result=renewed)
    if kind == "rejected" and chance.random() < 0.5:
        yes = Decision(subtask=key, approves=True)
        return Fork(anew=key, inputs={}, result=_result(value_of(edges) + added), decision=yes)
    return None


def _result(value: int) -> Json:
    return {"value": value % MODULUS}
