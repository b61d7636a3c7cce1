"""What of a plan can be judged although the shape of some of its subtasks is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rayloom.dag.errors import Fault
from rayloom.dag.plan import MAX_FAULTS, Subtask, TaskType
from rayloom.dag.values import JsonObject

_BY_THEMSELVES: Final = frozenset(
    {"name", "depends_on", "resources", "timeout_s", "max_retries", "cacheable", "require_approval"}
)
"""Fields that say nothing about what the others of a subtask must be: whatever they are meant to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundPart:
    """A plan without the fields that have faults.

    ``aside``: ids of subtasks of which too little is known to judge them; others may depend on them all the same.
    """

    plan: JsonObject
    aside: frozenset[str]
    _pointer: str
    _faulty: Mapping[int, frozenset[str]]

    def told(self, faults: Sequence[Fault]) -> list[Fault]:
        """Those faults of the plan that are none of a field that was left out."""
        found = ((fault, _place(fault, self._pointer)) for fault in faults)
        return [fault for fault, place in found if place is None or place[1] not in self._faulty.get(place[0], ())]


def sound_part(raw: object, faults: Sequence[Fault], *, pointer: str) -> SoundPart | None:
    """The sound part of a plan with these ``faults`` of its shape; None where what is left could be misread."""
    if not isinstance(raw, dict) or not isinstance(subtasks := raw.get("subtasks"), list) or len(faults) >= MAX_FAULTS:
        return None
    faulty: dict[int, frozenset[str]] = {}
    for fault in faults:
        place = _place(fault, pointer)
        if place is not None:
            faulty[place[0]] = faulty.get(place[0], frozenset()) | {place[1]}
        elif fault.pointer == f"{pointer}/subtasks" or fault.pointer.startswith(f"{pointer}/subtasks/"):
            # A subtask that is none, or too many of them.
            return None
    left: list[Any] = list(subtasks)
    for ordinal, names in faulty.items():
        subtask = left[ordinal]
        if not isinstance(subtask, dict) or "id" in names or not isinstance(subtask.get("id"), str):
            # Any name that nobody has may be meant for it.
            return None
        known = [name for name in subtask if name in Subtask.model_fields and name not in names]
        left[ordinal] = {"type": TaskType.TOOL} | {name: subtask[name] for name in known}
    return SoundPart(
        plan={"subtasks": left},
        aside=frozenset(left[ordinal]["id"] for ordinal, names in faulty.items() if not names <= _BY_THEMSELVES),
        _pointer=pointer,
        _faulty=faulty,
    )


def _place(fault: Fault, pointer: str) -> tuple[int, str] | None:
    """The ordinal of a subtask and the field of it that a fault is in."""
    found = re.match(rf"{re.escape(pointer)}/subtasks/(\d+)/([^/]+)", fault.pointer)
    return None if found is None else (int(found[1]), found[2])
