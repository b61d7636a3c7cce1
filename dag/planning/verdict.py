"""What an answer of a model comes to: a plan that can run, questions, or faults in the model's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planning.answer import find_answer
from rayloom.dag.planning.brief import Brief, brief_of
from rayloom.dag.planning.join import join, wanted_answer, with_results
from rayloom.dag.planning.minimal import minimal
from rayloom.dag.planning.passed import told_to_all
from rayloom.dag.planning.read import read_plan
from rayloom.dag.planning.repair import own_words
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Of one answer. With ``faults`` there is no plan; with neither, the brief has questions.

    ``notes``: what was mended. ``plan``: the same as ``verified``, as JSON, with minimal dependencies. ``joiner``: the
    id of the subtask in it that answers the whole request; empty where there is none.
    """

    brief: Brief
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    plan: JsonObject | None = None
    verified: VerifiedPlan | None = None
    joiner: str = ""


def judge(
    text: str,
    *,
    prompt: str,
    language: str,
    tools: Mapping[str, ToolView],
    nodes: Sequence[NodeShape],
    context: JsonObject | None = None,
) -> Verdict:
    """What the answer ``text`` comes to. ``tools``: all that may be used. Takes its time: call it in a thread.

    Never raises.
    """
    found = find_answer(text)
    if found.fault is not None or found.value is None:
        brief = brief_of({}, prompt=prompt, language=language)
        return Verdict(brief=brief, faults=(found.fault,) if found.fault is not None else ())
    brief = brief_of(found.value, prompt=prompt, language=language)
    subtasks = found.value["subtasks"]
    if not subtasks and brief.questions:
        return Verdict(brief=brief, notes=found.notes)
    told = told_to_all(prompt, context or {})
    reading = read_plan(subtasks, tools, told=told)
    notes = found.notes + reading.notes
    if brief.questions:
        # With a plan beside them they keep nobody from working.
        notes += tuple(f"the model would have asked: {question}" for question in brief.questions)
    if reading.faults:
        return Verdict(brief=brief, notes=notes, faults=reading.faults)

    def verified_as(plan: JsonObject) -> VerifiedPlan:
        return verify(parse_plan(plan, pointer=""), tools=tools, nodes=nodes, model_available=True, pointer="")

    try:
        verified = verified_as(reading.plan)
    except InvalidPlan as error:
        return Verdict(brief=brief, notes=notes, faults=tuple(own_words(error.faults, reading)))
    written, removed = minimal(verified)
    if removed:
        notes += (f"{removed} dependencies that others imply are left out",)
    wanted, joiner = wanted_answer(found.value), ""
    planned = subtasks_of(written)
    if wanted:
        planned, joiner = join(planned, wanted, told)
    written = {"subtasks": list[Json](with_results(planned))}
    verified = verified_as(written)
    return Verdict(brief=brief, notes=notes, plan=written, verified=verified, joiner=joiner)
