"""More of a plan that runs already: what a model is told of what there is, and what its answer comes to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.model import Message
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planning.answer import find_answer
from rayloom.dag.planning.brief import brief_of
from rayloom.dag.planning.join import join_again, with_results
from rayloom.dag.planning.minimal import minimal
from rayloom.dag.planning.passed import told_to_all
from rayloom.dag.planning.read import read_plan
from rayloom.dag.planning.repair import own_words
from rayloom.dag.planning.verdict import Verdict
from rayloom.dag.planning.written import ids_of
from rayloom.dag.replan import Reached, ReplanRequest
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify

_OUTPUT_CHARS: Final = 400
_MOST_SHOWN: Final = 60
_PLACE: Final = re.compile(r"^/subtasks/(\d+)")
_WANTED: Final = (
    "This plan was made and has run. Where its subtasks are now:\n%s\nWhy that is not enough: %s\n"
    "Add subtasks that reach what was asked for another way. Answer as before with ONE line of JSON, with the NEW "
    "subtasks only: new ids; `after` and references may name those that are COMPLETED, never the others. Do nothing "
    'again that is done. If nothing can help, answer {"intent":"none","subtasks":[]}.'
)


def more_messages(asked: Sequence[Message], request: ReplanRequest) -> tuple[Message, ...]:
    """The conversation that asks for more of a plan; ``asked`` is what asked for the plan."""
    rows = [_row(each) for each in request.reached[:_MOST_SHOWN]]
    if len(request.reached) > _MOST_SHOWN:
        rows.append(f"and {len(request.reached) - _MOST_SHOWN} more")
    wanted = _WANTED % ("\n".join(rows), request.reason)
    return (*asked, Message(speaker="user", text=wanted))


def judge_more(text: str, request: ReplanRequest, *, language: str) -> Verdict:
    """What the answer ``text`` comes to: its ``plan`` are the new subtasks alone, and may have none.

    Takes its time: call it in a thread. Never raises.
    """
    asked, found = request.request, find_answer(text)
    brief = brief_of(found.value or {}, prompt=asked.prompt, language=language)
    if found.fault is not None or found.value is None:
        return Verdict(brief=brief, faults=(found.fault,) if found.fault is not None else ())
    subtasks = found.value["subtasks"]
    if not subtasks:
        return Verdict(brief=brief, notes=found.notes, plan={"subtasks": []})
    before = subtasks_of(request.plan)
    known = ids_of(before)
    told = told_to_all(asked.prompt, asked.context)
    done = frozenset(each.key for each in request.reached if each.is_done)
    reading = read_plan(subtasks, asked.tools, before=before, given_up=set(known) - done, told=told)
    notes = found.notes + reading.notes
    if reading.faults:
        return Verdict(brief=brief, notes=notes, faults=reading.faults)

    def verified_with(added: Sequence[JsonObject]) -> VerifiedPlan:
        return verify(
            parse_plan({"subtasks": [*before, *added]}, pointer=""), tools=asked.tools, nodes=asked.nodes,
            model_available=True, pointer="", done=known, unusable=set(known) - done,
        )  # fmt: skip

    try:
        verified = verified_with(subtasks_of(reading.plan))
    except InvalidPlan as error:
        return Verdict(brief=brief, notes=notes, faults=tuple(own_words(_shifted(error.faults, len(before)), reading)))
    written, _ = minimal(verified)
    added, joiner = subtasks_of(written)[len(before) :], ""
    if request.joiner:
        added, joiner = join_again(before, added, request.joiner, done, told)
    added = with_results(added, before=before, done=done)
    verified = verified_with(added)
    return Verdict(brief=brief, notes=notes, plan={"subtasks": list[Json](added)}, verified=verified, joiner=joiner)


def _row(reached: Reached) -> str:
    said = reached.error or reached.output
    return f"- {reached.key}: {reached.status}" + (f" {said[:_OUTPUT_CHARS]}" if said else "")


def _shifted(faults: Sequence[Fault], by: int) -> list[Fault]:
    """Faults of the whole plan as those of what is added to it; the old part is not judged, so it has none."""

    def shifted(match: re.Match[str]) -> str:
        return f"/subtasks/{int(match[1]) - by}"

    return [Fault(_PLACE.sub(shifted, fault.pointer), fault.message) for fault in faults]
