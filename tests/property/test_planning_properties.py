"""Whatever a model says: reading it never breaks, and what passes for a plan is one that can run."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rayloom.dag import graph
from rayloom.dag.errors import Fault
from rayloom.dag.plan import parse_plan, subtasks_of
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.answer import find_answer
from rayloom.dag.planning.beginning import EarlyReader, joined
from rayloom.dag.planning.read import PlanReader, read_plan
from rayloom.dag.planning.repair import repair_messages
from rayloom.dag.planning.select import select
from rayloom.dag.planning.stream import SubtaskStream
from rayloom.dag.planning.verdict import Verdict, judge
from rayloom.dag.planning.written import ids_of
from rayloom.dag.tool_view import ToolView
from rayloom.dag.verified import VerifiedSubtask
from rayloom.dag.verify import verify
from tests.unit.dag.planning.views import VIEWS

texts = st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
names = st.sampled_from(["a", "b", "c", "A", "a b", "获取", "", "a_2", "none", "step1", "step2"]) | texts
tools = st.sampled_from([*VIEWS, "think", "code", "http_fetch_text", "nothing", "", "python.run"]) | texts
references = st.builds(
    lambda name, form: form.replace("@", name),
    names,
    st.sampled_from(
        ["${@.output}", "{{ @.output.x }}", "@.output", "#/@/output", "@", "${@.output.x} y", "@.output[0]"]
    ),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | references | references.map(lambda text: {"$ref": text}) | texts.map(lambda text: {"$secret": text}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("$ref"), inner, max_size=3),
    max_leaves=6,
)
inputs = st.dictionaries(
    st.sampled_from(["url", "URL", "to", "body", "limit", "rows", "code", "x"]), values, max_size=3
)
subtasks = st.fixed_dictionaries(
    {},
    optional={
        "id": names | scalars,
        "tool": tools | values,
        "type": st.sampled_from(["REASONING", "CODE_GEN", "TOOL", "any"]) | scalars,
        "do": texts | scalars,
        "input": inputs | values,
        "after": st.lists(names, max_size=3) | values,
        "depends_on": st.lists(names, max_size=3),
        "name": texts,
        "require_approval": scalars,
    },
)
answers = st.fixed_dictionaries(
    {"subtasks": st.lists(subtasks | values, max_size=6)},
    optional={"intent": values, "questions": values, "max_tokens": values, "constraints": values},
)


def verdict_of(text: str) -> Verdict:
    verdict = judge(text, prompt="x", language="en", tools=VIEWS, nodes=())
    # One of three: a plan, faults, or questions.
    ways = (verdict.plan is not None, bool(verdict.faults), verdict.plan is None and not verdict.faults)
    assert sum(ways) == 1
    if verdict.plan is not None:
        again = verify(parse_plan(verdict.plan), tools=VIEWS, nodes=(), model_available=True)
        assert verdict.verified is not None
        assert again.width == verdict.verified.width
    elif not verdict.faults:
        assert verdict.brief.questions
    repair_messages((), text, verdict.faults or [Fault("", "x")])
    return verdict


@given(answers)
def test_whatever_passes_for_a_plan_can_run(answer: dict[str, Any]) -> None:
    verdict_of(json.dumps(answer))


@given(answers, st.data())
def test_pieces_of_an_answer_are_read_or_refused(answer: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(answer, ensure_ascii=data.draw(st.booleans()))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    verdict_of(text[start:end])
    verdict_of(text[:start] + data.draw(texts) + text[end:])


@given(st.text())
def test_any_text_at_all_is_read_or_refused(text: str) -> None:
    found = find_answer(text)
    assert (found.value is None) == (found.fault is not None)
    SubtaskStream().feed(text)


@given(answers, st.integers(1, 40))
def test_the_stream_gives_what_the_whole_holds(answer: dict[str, Any], size: int) -> None:
    text = json.dumps({"subtasks": answer["subtasks"]})
    stream = SubtaskStream()
    found = [item for at in range(0, len(text), size) for item in stream.feed(text[at : at + size])]
    whole = find_answer(text)
    if whole.value is not None:
        known: Any = whole.value["subtasks"]
        assert found == known[: len(found)]
        if all(isinstance(item, dict) for item in known):
            assert found == known


@given(st.lists(subtasks, min_size=1, max_size=5))
def test_one_by_one_and_all_at_once_are_read_alike(items: list[Any]) -> None:
    value = find_answer(json.dumps({"subtasks": items})).value
    if value is None:
        return
    raw: Any = value["subtasks"]
    reader = PlanReader(VIEWS)
    for item in raw:
        reader.add(item)
    assert reader.finish() == read_plan(raw, VIEWS)


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=12), st.integers(1, 6))
def test_no_more_tools_are_selected_than_wanted_and_each_once(prompt: str, known: list[str], most: int) -> None:
    views = {name: ToolView(name=name, schema={}, resources={}, description=name * 2) for name in known}
    found = select(prompt, views, most=most)
    assert len(set(found)) == len(found)
    mentioned = [name for name in known if f"@{name}" in prompt]
    assert len(found) <= max(most, len(mentioned), 0) or len(known) <= most
    assert set(found) <= set(known)


@given(answers, answers)
def test_what_begins_is_part_of_any_plan_that_comes_in_the_end(first: Any, last: Any) -> None:
    said = json.dumps({"intent": "x", **first}, ensure_ascii=True)
    request = PlanRequest(task_id="t", prompt="p", context={}, tools=VIEWS, may_begin=True)
    reader = EarlyReader(request)
    for at in range(0, len(said), 7):
        for written in reader.feed(said[at : at + 7]):
            reader.judged(written)
    begun = reader.given
    verify(parse_plan({"subtasks": [*begun]}), tools=VIEWS, nodes=()) if begun else None
    for text in (said, json.dumps(last)):
        verdict = judge(text, prompt="p", language="en", tools=VIEWS, nodes=())
        if verdict.plan is None:
            continue
        found = joined(verdict.plan, begun)
        whole = verify(parse_plan(found.plan), tools=VIEWS, nodes=(), model_available=True, done=ids_of(begun))
        assert subtasks_of(found.plan)[: len(begun)] == begun
        assert verdict.verified is not None
        # What is dropped is all that is more, and nothing stands on it.
        assert len(whole.subtasks) == len(verdict.verified.subtasks) + len(found.dropped)
        kept = [each for each in whole.subtasks if each.spec.id not in found.dropped]
        needed = {whole.subtasks[above].spec.id for each in kept for above in each.dependencies}
        assert needed.isdisjoint(found.dropped)
        assert graph.width(graph.levels(_among(kept))) == verdict.verified.width


def _among(kept: list[VerifiedSubtask]) -> list[tuple[int, ...]]:
    """What these wait for, by their places among themselves."""
    place = {each.ordinal: at for at, each in enumerate(kept)}
    return [tuple(place[above] for above in each.dependencies) for each in kept]
