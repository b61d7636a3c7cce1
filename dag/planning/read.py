"""From a model's answer to a plan as the contract has it.

A model is told to write little: ``id``, ``tool``, ``input``, ``do``, ``after``. Small ones write other things all the
same. What can mean one thing only is mended, and each mending told; what can't is left for verification to find, or is
a fault here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import faults_of
from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.planning.ids import Ids, said_of
from rayloom.dag.planning.inputs import InputMender
from rayloom.dag.planning.names import meant_tool, one_off, sound_of
from rayloom.dag.planning.passed import result_of
from rayloom.dag.planning.written import ids_of
from rayloom.dag.references import REF, scan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject

THINK: Final = "think"
CODE: Final = "code"
MAX_PLANNED: Final = 64
"""Subtasks that a model may plan at once; a person's own plan may have many more."""
MAX_NAME_CHARS: Final = 120
_MAX_NOTES: Final = 40
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id",),
    "tool": ("tool", "tool_name", "function", "action"),
    "type": ("type", "kind"),
    "name": ("name", "title"),
    "do": ("do", "instruction", "instructions", "description", "prompt", "task"),
    "input": ("input", "inputs", "args", "arguments", "parameters", "params"),
    "after": ("after", "depends_on", "dependencies", "deps", "needs", "requires"),
    "require_approval": ("require_approval",),
}
_NOWHERE: Final = frozenset({"", "none", "null", "n/a", "no"})
_THINKING: Final = frozenset({"think", "reason", "reasoning", "llm", "model", "aggregate", "summarize", "answer"})
_CODING: Final = frozenset({"code", "codegen", "python"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What an answer says: a plan that is still to be verified, what was mended, and what could not be read.

    ``places``: for each subtask of the plan its place in the model's own list.
    """

    plan: JsonObject
    notes: tuple[str, ...]
    faults: tuple[Fault, ...]
    places: tuple[int, ...]


def read_plan(
    raw: Json,
    tools: Mapping[str, ToolView],
    *,
    before: Sequence[JsonObject] = (),
    given_up: Collection[str] = (),
    told: JsonObject | None = None,
) -> Reading:
    """The plan in the list of subtasks that a model gave. Never raises, whatever ``raw`` is.

    ``before``: subtasks that there are already; these are added to them. ``given_up``: ids of those of them that gave
    nothing. ``told``: what the input of everything that a model does has besides.
    """
    if not isinstance(raw, list) or not raw:
        return _unread("is empty: plan at least one")
    if len(raw) > MAX_PLANNED:
        said = f"has {len(raw):,} subtasks, at most {MAX_PLANNED} are planned at once: do more in each"
        return _unread(said)
    ids = Ids(ids_of(before), given_up=given_up, ahead=raw if before else ())
    reader = PlanReader(tools, ids, before=before, told=told)
    for item in raw:
        reader.add(item)
    return reader.finish()


class PlanReader:
    """Reads one subtask after the other; those whose dependencies all stand before them are as ``finish`` has them."""

    def __init__(
        self,
        tools: Mapping[str, ToolView],
        ids: Ids | None = None,
        *,
        before: Sequence[JsonObject] = (),
        told: JsonObject | None = None,
    ) -> None:
        self._tools, self._told, self._named = tools, told or {}, ids or Ids()
        self._ids = self._named.meant
        self._results: dict[str, str] = {str(each["id"]): result_of(each) for each in before}
        self._taken: dict[str, JsonObject] = {}
        self._read: list[tuple[int, str, JsonObject]] = []
        self._notes: list[str] = []
        self._faults: list[Fault] = []
        self._count = 0

    def add(self, raw: Json) -> JsonObject | None:
        """The next subtask as far as it can be known now; None where it is none, or a copy of one before it."""
        place, self._count = self._count, self._count + 1
        where = f"/subtasks/{place}"
        if not isinstance(raw, dict):
            self._faults.append(Fault(where, "is no object: give {id, tool, input, do, after}"))
            return None
        fields = self._fields(raw, where)
        said = said_of(fields)
        if said and self._taken.get(said) == fields:
            self._note(f"`{said}` was given twice, the same: one is left out")
            return None
        id_ = self._named.add(said, place)
        if id_ != said:
            self._note(f"the id `{said}` of subtask {place + 1} is written `{id_}`")
        self._taken.setdefault(said, fields)
        self._read.append((place, id_, fields))
        return self._subtask(place, id_, fields, is_last=False)

    @property
    def is_sound(self) -> bool:
        """Whether all that was read so far could be read."""
        return not self._faults

    def finish(self) -> Reading:
        """The whole plan: what depends on later subtasks is known now."""
        subtasks = [self._subtask(place, id_, fields, is_last=True) for place, id_, fields in self._read]
        for (place, _, _), subtask in zip(self._read, subtasks, strict=True):
            self._faults += [Fault(f"/subtasks/{place}", doubt) for doubt in self._named.doubts(subtask)]
        return Reading(
            plan={"subtasks": list(subtasks)},
            notes=tuple(dict.fromkeys(self._notes))[:_MAX_NOTES],
            faults=tuple(dict.fromkeys(self._faults)),
            places=tuple(place for place, _, _ in self._read),
        )

    def _note(self, note: str) -> None:
        self._notes.append(note[:300])

    def _fields(self, raw: JsonObject, where: str) -> JsonObject:
        """The members by our names; what else there is says nothing."""
        fields: JsonObject = {}
        used: set[str] = set()
        for name, names in _FIELDS.items():
            found = next((each for each in names if raw.get(each) is not None), None)
            if found is not None:
                fields[name] = raw[found]
                used.update(names)
        self._unpack(fields)
        self._hoist(fields, where)
        # `instruction` beside `description`, or `do` beside `task`: the first of each is what counts.
        left = [name for name in raw if name not in used and raw[name] not in (None, "", [], {})]
        if left:
            self._note(f"{where}: {', '.join(f'`{name}`' for name in left[:5])} left out, a model does not set that")
        return fields

    def _unpack(self, fields: JsonObject) -> None:
        """A tool with its input in one, as calls of functions are written."""
        call = fields.get("tool")
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            fields["tool"] = call["name"]
            given = next((call[name] for name in _FIELDS["input"] if call.get(name) is not None), None)
            if given is not None and fields.get("input") in (None, {}):
                fields["input"] = given

    def _hoist(self, fields: JsonObject, where: str) -> None:
        """Small models write `do` and `after` within `input`: out of it, unless its tool takes them there."""
        given, tool = fields.get("input"), fields.get("tool")
        if not isinstance(given, dict):
            return
        view = self._tools.get(tool) if isinstance(tool, str) else None
        takes = view.schema.get("properties", {}) if view is not None else {}
        for name in ("do", "after"):
            if name in given and name not in takes and (takes or not fields.get(name)):
                fields[name] = fields.get(name) or given[name]
                given = {key: value for key, value in given.items() if key != name}
                fields["input"] = given
                self._note(f"{where}: `{name}` stood within `input`")

    def _subtask(self, place: int, id_: str, fields: JsonObject, *, is_last: bool) -> JsonObject:
        where = f"/subtasks/{place}"
        subtask: JsonObject = {"id": id_}
        told = fields.get("do")
        do = told.strip() if isinstance(told, str) else ""
        named = fields.get("name")
        name = named.strip() if isinstance(named, str) else ""
        type_, tool = self._kind(fields, has_words=bool(do or name))
        given = self._input(fields.get("input"), where)
        if tool == CODE_TOOL and "code" not in given and do:
            self._note(f"`{id_}` calls `{CODE_TOOL}` without code: a model writes it")
            type_, tool = "CODE_GEN", None
        view = self._tools.get(tool or "")
        mender = InputMender(self._ids, self._results)
        given = mender.mend(given, view.schema if view is not None else {})
        for note in mender.notes:
            self._note(f"`{id_}`: {note}")
        after = self._after(fields.get("after"), id_, is_last=is_last)
        label = " ".join((name or do).split())[:MAX_NAME_CHARS]
        if label:
            subtask["name"] = label
        subtask["type"] = type_ or _type_of(tool or "", view)
        if tool is not None:
            subtask["tool"] = tool
        elif "code" not in given or type_ != "CODE_GEN":
            if do or name:
                subtask["instruction"] = do or name
            given = self._seen(given, after)
        if given:
            subtask["input"] = given
        if after:
            subtask["depends_on"] = list(after)
        if fields.get("require_approval") is True:
            subtask["require_approval"] = True
        self._results[id_] = result_of(subtask)
        return subtask

    def _kind(self, fields: JsonObject, *, has_words: bool) -> tuple[str | None, str | None]:
        """Type, where it follows from what is said, and tool; the tool as it was written where none is known by it."""
        written, kind = fields.get("tool"), fields.get("type")
        said = written if isinstance(written, str) else "" if written is None else json.dumps(written)[:80]
        meant = meant_tool(said, self._tools) if said else None
        if meant is not None:
            if meant != said:
                self._note(f"the tool `{said[:80]}` is called `{meant}`")
            return None, meant
        sound, kind_sound = sound_of(said), sound_of(kind) if isinstance(kind, str) else ""
        is_nothing = said.strip().lower() in _NOWHERE
        if sound in _CODING or (is_nothing and kind_sound in _CODING):
            return "CODE_GEN", None
        if sound in _THINKING or (is_nothing and (kind_sound in _THINKING or (not kind_sound and has_words))):
            return "REASONING", None
        if is_nothing and isinstance(kind, str):
            # Some put the tool where the type belongs.
            meant = meant_tool(kind, self._tools)
            if meant is not None:
                return None, meant
        return ("TOOL", None) if is_nothing else (None, said[:256])

    def _input(self, given: Json | None, where: str) -> JsonObject:
        if isinstance(given, str):
            try:
                given = json.loads(given, strict=False) if given.strip() else None
            except (ValueError, RecursionError):
                self._faults.append(Fault(f"{where}/input", "is text: give an object"))
                return {}
            found = faults_of(given, pointer=f"{where}/input", limit=1)
            if found:
                self._faults += found
                return {}
        if given is None:
            return {}
        if not isinstance(given, dict):
            self._faults.append(Fault(f"{where}/input", "is no object: name each value as the tool's input does"))
            return {}
        return given

    def _after(self, given: Json | None, id_: str, *, is_last: bool) -> list[str]:
        names = given if isinstance(given, list) else [given]
        after: list[str] = []
        for name in names:
            if isinstance(name, dict):
                name = name.get("id")
            said = str(name) if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
            if said.strip().lower() in _NOWHERE and said not in self._ids:
                continue
            meant = self._ids.get(said) or (one_off(said, self._ids) if is_last else None) or said
            meant = self._ids.get(meant, meant)
            if meant == id_:
                self._note(f"`{id_}` can't come after itself: left out")
            elif meant not in after:
                if meant != said:
                    self._note(f"`{id_}` comes after `{said[:80]}`: that is `{meant}`")
                after.append(meant[:256])
        return after

    def _seen(self, given: JsonObject, after: list[str]) -> JsonObject:
        """The input of a subtask that a model does: the outputs of what it comes after, unless it names some itself."""
        known = set(self._ids.values())
        seen: JsonObject = {name: value for name, value in self._told.items() if name not in known}
        if not scan(given, known).references:
            seen |= {name: {REF: f"{name}.output{self._results.get(name, '')}"} for name in after if name in known}
        return {**seen, **given}


def _unread(said: str) -> Reading:
    return Reading(plan={"subtasks": []}, notes=(), faults=(Fault("/subtasks", said),), places=())


def _type_of(tool: str, view: ToolView | None) -> str:
    if tool == CODE_TOOL:
        return "CODE_GEN"
    if tool.startswith("http.") or "api" in sound_of(tool):
        return "API_CALL"
    return "DATA_RETRIEVAL" if view is not None and view.permission_level == "read" else "TOOL"
