"""What is said to a model whose plan can't run: each fault with its place in the model's own answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rayloom.dag.errors import Fault
from rayloom.dag.model import Message
from rayloom.dag.planning.read import Reading

MAX_ROUNDS: Final = 2
MAX_TOLD: Final = 12
"""Faults in one message: a small model loses its way in more."""
_ECHOED_CHARS: Final = 6_000
_MESSAGE_CHARS: Final = 240
_PLACE: Final = re.compile(r"^/subtasks/(\d+)(?:/(\w+))?(.*)$")
_THEIRS: Final = {"depends_on": "after", "instruction": "do"}


def own_words(faults: Sequence[Fault], reading: Reading) -> list[Fault]:
    """Faults of a plan that was read from an answer, with the places and words of that answer."""
    return [_own(fault, reading) for fault in faults]


def _own(fault: Fault, reading: Reading) -> Fault:
    match = _PLACE.match(fault.pointer)
    if match is None:
        return fault
    ordinal, field = int(match[1]), match[2]
    subtasks = reading.plan["subtasks"]
    assert isinstance(subtasks, list)
    subtask = subtasks[ordinal]
    assert isinstance(subtask, dict)
    if field == "type" and "tool" not in subtask:
        field = "tool"
    place = f"/subtasks/{reading.places[ordinal]}"
    pointer = place + (f"/{_THEIRS.get(field, field)}{match[3]}" if field else "")
    return Fault(pointer, f"({subtask['id']}) {fault.message}")


def repair_messages(
    asked: Sequence[Message], answer: str, faults: Sequence[Fault], *, begun: Sequence[str] = ()
) -> tuple[Message, ...]:
    """The conversation that asks for a plan without these faults. ``begun``: ids of what runs already."""
    told = [f"{fault.pointer or '/'}: {fault.message[:_MESSAGE_CHARS]}" for fault in faults[:MAX_TOLD]]
    if len(faults) > MAX_TOLD:
        told.append(f"and {len(faults) - MAX_TOLD} more")
    echoed = answer if len(answer) <= _ECHOED_CHARS else f"{answer[:_ECHOED_CHARS]}…"
    wanted = (
        "This plan can't run:\n"
        + "\n".join(told)
        + (f"\nRunning already, leave these as they are: {', '.join(begun)}." if begun else "")
        + "\nMend exactly that, and answer with the whole plan as ONE line of "
        "JSON, nothing else."
    )
    return (
        *asked,
        Message(speaker="assistant", text=echoed or "(nothing)"),
        Message(speaker="user", text=wanted),
    )


def shown(faults: Sequence[Fault], *, most: int = 3) -> str:
    """The first faults in one line, for people."""
    text = "; ".join(f"{fault.pointer or '/'}: {fault.message}" for fault in faults[:most])
    return text if len(faults) <= most else f"{text}; and {len(faults) - most} more"
