"""The beginning of a plan that is not whole yet: what of it may run already, and what the whole plan is with it.

What has begun stays as it was accepted, whatever the whole plan says in the end. Where that still means the same by an
id, it is the same subtask. What it means otherwise gets an id of its own, and what it does not have any more, or
otherwise, is dropped: it only reads, so nothing has to be undone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rayloom.dag.errors import InvalidPlan
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.early import may_begin
from rayloom.dag.planning.inputs import InputMender
from rayloom.dag.planning.names import numbered
from rayloom.dag.planning.read import PlanReader
from rayloom.dag.planning.stream import SubtaskStream
from rayloom.dag.planning.written import above, by_id, ids_of, input_of, needs_of
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verify import verify

# An answer that begins as it was asked to; what is thought aloud first may hold drafts of plans.
_HEAD: Final = re.compile(r"\s*(?:```[a-zA-Z]*\s*)?\{")
# What the request itself limits, or leaves open, is looked at with the whole plan.
_NOT_YET: Final = re.compile(r'"(?:max_tokens|max_cost_usd|questions)"\s*:')
_DOUBLE: Final = "{{"
_COSMETIC: Final = ("name", "depends_on")


class EarlyReader:
    """Reads an answer while it is written. ``given``: what it has let begin, in order."""

    def __init__(self, request: PlanRequest) -> None:
        self._request = request
        self._stream, self._reader = SubtaskStream(), PlanReader(request.tools)
        self._is_closed = not request.may_begin
        self.given: list[JsonObject] = []

    @property
    def ids(self) -> tuple[str, ...]:
        """Those of what it has let begin."""
        return ids_of(self.given)

    def feed(self, piece: str) -> tuple[JsonObject, ...]:
        """What a piece of the answer completes, to be judged one by one. Never raises."""
        return () if self._is_closed else self._stream.feed(piece)

    def judged(self, written: JsonObject) -> JsonObject | None:
        """The subtask, if it may begin. Takes its time: call it in a thread. Never raises.

        Nothing does any more once something can't run: a plan that will be refused is not begun any further.
        """
        head = self._stream.head
        if self._is_closed or not _HEAD.match(head) or _NOT_YET.search(head):
            self._is_closed = True
            return None
        subtask = self._reader.add(written)
        if not self._reader.is_sound:
            self._is_closed = True
        if subtask is None or self._is_closed:
            return None
        begun, tools = self.ids, self._request.tools
        try:
            plan = parse_plan({"subtasks": [*self.given, subtask]})
            if not may_begin(plan.subtasks[-1], tools=tools, begun=begun) or _mentions_later(subtask.get("input")):
                return None
            verify(plan, tools=tools, nodes=self._request.nodes, model_available=True, done=begun)
        except InvalidPlan:
            self._is_closed = True
            return None
        self.given.append(subtask)
        return subtask


def _mentions_later(value: Json) -> bool:
    """Whether a text has what would be read as a reference if its id were known by now."""
    if isinstance(value, dict):
        return any(map(_mentions_later, value.values()))
    if isinstance(value, list):
        return any(map(_mentions_later, value))
    return isinstance(value, str) and _DOUBLE in value


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A whole plan with its beginning first, as that was accepted.

    ``dropped``: ids that are no part of it any more. ``renamed``: what is called otherwise now, by what it was called.
    """

    plan: JsonObject
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


def joined(plan: JsonObject, begun: Sequence[JsonObject], lost: Collection[str] = ()) -> Joined:
    """What a plan is with what has begun before it was whole. ``lost``: ids of what was ended before it was done."""
    if not begun:
        return Joined(plan=plan)
    planned, first = by_id(subtasks_of(plan)), by_id(begun)
    needs, needed = needs_of(planned), needs_of(first)
    kept: set[str] = set()
    for id_, subtask in first.items():
        earlier = above(id_, needed)
        is_same = id_ not in lost and id_ in planned and _work(planned[id_]) == _work(subtask)
        if is_same and earlier <= kept and above(id_, needs) == earlier:
            kept.add(id_)
    names = {id_: id_ for id_ in planned}
    notes: list[str] = []
    for id_ in [each for each in planned if each in first and each not in kept]:
        names[id_] = numbered(id_, {*names.values(), *first})
        how = "and was ended before it was done" if id_ in lost else "as something else"
        notes.append(f"`{id_}` had begun {how}: what the plan has by that id is `{names[id_]}`")
    dropped = tuple(id_ for id_ in first if id_ not in kept)
    if dropped:
        notes.append(f"had begun, and is no part of the plan any more: {', '.join(dropped)}")
    others: list[Json] = [_renamed(each, names) for id_, each in planned.items() if id_ not in kept]
    renamed = {id_: name for id_, name in names.items() if id_ != name}
    return Joined(plan={"subtasks": [*begun, *others]}, dropped=dropped, notes=tuple(notes), renamed=renamed)


def held_back(plan: JsonObject, begun: Sequence[JsonObject]) -> JsonObject:
    """The plan, with an approval wanted of all that comes first of what has not begun: the rest waits for these."""
    first = set(ids_of(begun))
    planned = by_id(subtasks_of(plan))
    needs = needs_of(planned)
    subtasks: list[Json] = [
        each if id_ in first or not first.issuperset(needs[id_]) else {**each, "require_approval": True}
        for id_, each in planned.items()
    ]
    return {"subtasks": subtasks}


def _work(subtask: JsonObject) -> JsonObject:
    """What it does, whatever it is called and waits for."""
    return {name: value for name, value in subtask.items() if name not in _COSMETIC and value not in ({}, None)}


def _renamed(subtask: JsonObject, names: Mapping[str, str]) -> JsonObject:
    """The subtask with its own id, and those that it names, as they are called now."""
    if all(name == new for name, new in names.items()):
        return subtask
    written: JsonObject = {**subtask, "id": names[str(subtask["id"])]}
    after, given = subtask.get("depends_on"), input_of(subtask)
    if isinstance(after, list):
        written["depends_on"] = [names.get(str(name), name) for name in after]
    if given:
        written["input"] = InputMender(names, {}).mend(given, {})
    return written
