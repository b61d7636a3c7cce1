"""Subtasks as they are written: their ids, their inputs, and what they come after."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from rayloom.dag.references import scan
from rayloom.dag.values import JsonObject


def ids_of(subtasks: Iterable[JsonObject]) -> tuple[str, ...]:
    """Their ids."""
    return tuple(str(each["id"]) for each in subtasks)


def by_id(subtasks: Iterable[JsonObject]) -> dict[str, JsonObject]:
    """The same by their ids, in their order."""
    return {str(each["id"]): each for each in subtasks}


def input_of(subtask: JsonObject) -> JsonObject:
    """Its input; empty where it has none."""
    given = subtask.get("input")
    return given if isinstance(given, dict) else {}


def needed(subtask: JsonObject, known: Collection[str]) -> list[str]:
    """Those of ``known`` that it comes after itself, in its own order: whom it names, and whose outputs it uses."""
    after = subtask.get("depends_on")
    names = [str(name) for name in after] if isinstance(after, list) else []
    names += [reference.subtask for reference in scan(input_of(subtask), known).references]
    return [name for name in dict.fromkeys(names) if name in known]


def needs_of(subtasks: Mapping[str, JsonObject]) -> dict[str, list[str]]:
    """For each id those of the others that it comes after itself."""
    return {id_: needed(subtask, subtasks) for id_, subtask in subtasks.items()}


def above(id_: str, needs: Mapping[str, Sequence[str]]) -> set[str]:
    """All that it comes after, near or far."""
    found: set[str] = set()
    ahead = list(needs.get(id_, ()))
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead.extend(needs[name])
    return found
