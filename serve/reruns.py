"""Running some of a stored plan anew, with other inputs where they are given: what that comes to, and its faults."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.json_text import escape
from rayloom.dag.nearest import Hints
from rayloom.dag.plan import MAX_FAULTS
from rayloom.dag.references import scan
from rayloom.dag.states import SubtaskStatus
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db.forks import StoredPlan
from rayloom.db.retries import NewInput
from rayloom.serve.intake import Judge, ToolRules
from rayloom.serve.problems import Problem, invalid

_OF_SUBTASK: Final = re.compile(r"^/plan/subtasks/(\d+)((?:/.*)?)$", re.DOTALL)
_INPUT: Final = "/input"
_Placing = Callable[[str, str, str], Fault]
"""Where in a request a fault is: from the id of a subtask, the pointer in it, and the message."""


def with_everything_below(dependencies: Mapping[str, Sequence[str]], first: Iterable[str]) -> frozenset[str]:
    """``first`` and all that depends on it, at any distance."""
    dependents: dict[str, list[str]] = {}
    for key, above in dependencies.items():
        for dependency in above:
            dependents.setdefault(dependency, []).append(key)
    found = set(first)
    pending = list(found)
    while pending:
        more = [key for key in dependents.get(pending.pop(), ()) if key not in found]
        found.update(more)
        pending += more
    return frozenset(found)


def unknown_ids(ids: Iterable[tuple[str, str]], known: Collection[str]) -> list[Fault]:
    """A fault for each (pointer, id) that the plan does not have, of the first of them."""
    hints, unknown = Hints(), (each for each in ids if each[1] not in known)
    return [
        Fault(pointer, f"there is no subtask `{id_[:150]}`{hints(id_, known)}")
        for pointer, id_ in islice(unknown, MAX_FAULTS)
    ]


async def plan_of_fork(
    judge: Judge, stored: StoredPlan, first: Sequence[str], inputs: Mapping[str, JsonObject]
) -> tuple[VerifiedPlan, frozenset[str]]:
    """The plan of a fork, and what of it is done already.

    Run anew are ``first``, all that depends on it, and what is not COMPLETED. Raises Problem (422) with a pointer into
    ``/from`` or ``/inputs`` for every fault.
    """
    faults = unknown_ids(((f"/from/{place}", id_) for place, id_ in enumerate(first)), stored.statuses)
    faults += unknown_ids(((f"/inputs/{escape(id_)}", id_) for id_ in inputs), stored.statuses)
    if faults:
        raise invalid(faults[:MAX_FAULTS])
    unfinished = [key for key, status in stored.statuses.items() if status != SubtaskStatus.COMPLETED]
    anew = with_everything_below(stored.dependencies, [*first, *unfinished])
    kept = [id_ for id_ in inputs if id_ not in anew]
    if kept:
        message = "would not be run anew: name it, or something that it depends on, in `from`"
        raise invalid([Fault(f"/inputs/{escape(id_)}", message) for id_ in kept[:MAX_FAULTS]])
    done = frozenset(stored.statuses) - anew

    def place(id_: str, rest: str, message: str) -> Fault:
        if id_ in inputs and rest.startswith(_INPUT):
            return Fault(f"/inputs/{escape(id_)}{rest.removeprefix(_INPUT)}", message)
        return Fault("/from", f"`{id_}` can't run anew: {message}")

    return await _verified(judge, stored, inputs, done, place), done


async def new_input(judge: Judge, stored: StoredPlan, key: str, value: JsonObject) -> NewInput:
    """Another input for one BLOCKED subtask. Raises Problem (422) with a pointer into ``/input`` for every fault."""
    scanned = scan(value, stored.statuses, pointer=_INPUT, limit=MAX_FAULTS)
    faults = list(scanned.faults)
    for reference in scanned.references:
        status = stored.statuses[reference.subtask]
        if reference.subtask == key:
            faults.append(Fault(reference.pointer, f"`{key}` can't use its own output"))
        elif status != SubtaskStatus.COMPLETED and reference.subtask not in stored.dependencies[key]:
            message = f"`{reference.subtask}` is {status}: a retry can only use the outputs of what is COMPLETED"
            faults.append(Fault(reference.pointer, message))
    if faults:
        raise invalid(faults[:MAX_FAULTS], code="INPUT_INVALID")

    def place(id_: str, rest: str, message: str) -> Fault:
        if rest.startswith(_INPUT):
            return Fault(rest, message)
        return Fault("", f"`{id_}` can't run again: {message}")

    # What is below it runs with what comes of the new input, so whoever gives that must be allowed to use it, too.
    done = frozenset(stored.statuses) - with_everything_below(stored.dependencies, [key])
    plan = await _verified(judge, stored, {key: value}, done, place)
    subtask = next(each for each in plan.subtasks if each.spec.id == key)
    return NewInput(
        value=value,
        referred=subtask.references,
        dependencies=tuple(plan.subtasks[ordinal].spec.id for ordinal in subtask.dependencies),
    )


async def _verified(
    judge: Judge, stored: StoredPlan, inputs: Mapping[str, JsonObject], done: Collection[str], place: _Placing
) -> VerifiedPlan:
    document: Any = stored.plan
    subtasks = [
        {**subtask, "input": inputs[subtask["id"]]} if subtask["id"] in inputs else subtask
        for subtask in document["subtasks"]
    ]
    # As it was stored: it was judged when the task was submitted, and holds what its user may not use, too.
    tools: Any = stored.options.get("tools")
    rules = ToolRules() if tools is None else ToolRules.model_construct(allow=tools["allow"], deny=tools["deny"])
    try:
        return await asyncio.to_thread(judge.plan, {**document, "subtasks": subtasks}, rules, done=done)
    except InvalidPlan as error:
        faults = []
        for fault in error.faults:
            found = _OF_SUBTASK.match(fault.pointer)
            faults.append(
                place(subtasks[int(found[1])]["id"], found[2], fault.message)
                if found is not None
                else Fault("", fault.message)
            )
        raise invalid(faults, code=error.code) from error


def no_plan(status: str) -> Problem:
    """The 409 of a task that nothing can be taken from."""
    return Problem(409, f"the task is {status} and has no plan, or none that is whole", code="WRONG_STATE")
