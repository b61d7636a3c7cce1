"""Random plans, values, events and prompts: what must hold of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import networkx as nx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayloom.dag import graph
from rayloom.dag.errors import Fault, InvalidPlan, Stale, UserError
from rayloom.dag.input_check import InputCheck
from rayloom.dag.json_text import faults_of
from rayloom.dag.outline import split
from rayloom.dag.output import sanitise
from rayloom.dag.paths import path_fault, search
from rayloom.dag.plan import Resources, parse_plan
from rayloom.dag.references import find, literal, plain_text, resolve, text_of
from rayloom.dag.resources import NodeShape, ResourceShape, copies, effective, fits
from rayloom.dag.retry import delay_s
from rayloom.dag.states import (
    SUBTASK_FINAL,
    SUBTASK_MOVES,
    TASK_FINAL,
    TASK_MOVES,
    SubtaskEvent,
    SubtaskStatus,
    TaskEvent,
    TaskStatus,
    move_subtask,
    move_task,
)
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json
from rayloom.dag.verify import verify

VIEWS = {
    view.name: view
    for view in (
        ToolView(name="core.noop", schema={"additionalProperties": False}, resources={"CPU": 0.25}),
        ToolView(name="core.echo", schema={"required": ["value"]}, resources={"CPU": 0.25}),
        ToolView(name="http.fetch_text", schema={"properties": {"url": {"maxLength": 40}}}, resources={"CPU": 0.25}),
        ToolView(name="python.run", schema={"required": ["code"]}, resources={"CPU": 1}),
        ToolView(name="shell.run", schema={"required": ["command"]}, resources={"CPU": 1}),
    )
}
ids = st.from_regex(r"[A-Za-z0-9_.\-]{1,12}", fullmatch=True)
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
keys = texts.filter(lambda key: not key.startswith("$"))
plain_values: st.SearchStrategy[Any] = st.recursive(
    scalars | texts.filter(lambda text: "${" not in text),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def dags(draw: st.DrawFn) -> list[tuple[int, ...]]:
    """Dependencies of a random DAG whose nodes stand in any order."""
    count = draw(st.integers(1, 25))
    earlier = [draw(st.sets(st.integers(0, node - 1), max_size=4)) if node else set() for node in range(count)]
    place = draw(st.permutations(range(count)))
    dependencies: list[tuple[int, ...]] = [()] * count
    for node, needed in enumerate(earlier):
        dependencies[place[node]] = tuple(sorted(place[other] for other in needed))
    return dependencies


graphs = st.integers(1, 12).flatmap(
    lambda count: st.lists(st.sets(st.integers(0, count - 1), max_size=3), min_size=count, max_size=count)
).map(lambda rows: [tuple(sorted(row)) for row in rows])  # fmt: skip


def _reference(dependencies: Sequence[Sequence[int]]) -> nx.DiGraph[int]:
    edges: nx.DiGraph[int] = nx.DiGraph()
    edges.add_nodes_from(range(len(dependencies)))
    edges.add_edges_from((needed, node) for node, row in enumerate(dependencies) for needed in row)
    return edges


def _raw(dependencies: Sequence[Sequence[int]], implied: set[int]) -> dict[str, Any]:
    """A plan with these edges; those of ``implied`` nodes are references."""
    subtasks: list[dict[str, Any]] = []
    for node, row in enumerate(dependencies):
        if node in implied:
            given_input = {"value": [f"${{s{needed}.output}}" for needed in row]}
            subtasks.append({"id": f"s{node}", "type": "TOOL", "tool": "core.echo", "input": given_input})
        else:
            names = [f"s{needed}" for needed in row]
            subtasks.append({"id": f"s{node}", "type": "TOOL", "tool": "core.noop", "depends_on": names})
    return {"subtasks": subtasks}


@given(dags(), st.sets(st.integers(0, 24)))
def test_every_dag_is_verified_and_its_order_is_sound(dependencies: list[tuple[int, ...]], implied: set[int]) -> None:
    plan = verify(parse_plan(_raw(dependencies, implied)), tools=VIEWS, nodes=[])
    assert [s.dependencies for s in plan.subtasks] == dependencies
    reference = _reference(dependencies)
    for subtask in plan.subtasks:
        assert set(subtask.dependents) == set(reference.successors(subtask.ordinal))
        assert all(plan.subtasks[needed].rank > subtask.rank for needed in subtask.dependencies)
        assert subtask.rank == 1 + max((plan.subtasks[n].rank for n in subtask.dependents), default=0)
    assert len(plan.critical_path) == nx.dag_longest_path_length(reference) + 1
    assert plan.width == max(map(len, nx.topological_generations(reference)))
    assert set(plan.sinks) == {f"s{n}" for n in reference if not reference.out_degree(n)}
    path = [int(name[1:]) for name in plan.critical_path]
    assert all(reference.has_edge(a, b) for a, b in pairwise(path))


@given(graphs)
def test_a_graph_is_refused_exactly_if_it_has_a_cycle(dependencies: list[tuple[int, ...]]) -> None:
    reference = _reference(dependencies)
    found = graph.find_cycles(dependencies)
    assert bool(found) is not nx.is_directed_acyclic_graph(reference)
    for cycle in found:
        assert all(reference.has_edge(a, b) for a, b in zip(cycle, (*cycle[1:], cycle[0]), strict=True))
        assert cycle[0] == min(cycle)
        assert len(set(cycle)) == len(cycle)
    raw = _raw(dependencies, set())
    if found:
        with pytest.raises(InvalidPlan):
            verify(parse_plan(raw), tools=VIEWS, nodes=[])
    else:
        verify(parse_plan(raw), tools=VIEWS, nodes=[])


@given(graphs, st.sets(st.integers(0, 11), max_size=3))
def test_reachable_is_what_networkx_calls_descendants(dependencies: list[tuple[int, ...]], starts: set[int]) -> None:
    starts = {start for start in starts if start < len(dependencies)}
    reference = _reference(dependencies)
    expected = set().union(*(nx.descendants(reference, start) for start in starts))
    reached = graph.reachable(graph.dependents(dependencies), starts)
    assert reached - starts == expected - starts


@given(ids, values)
def test_a_whole_output_comes_back_as_it_was(name: str, value: Json) -> None:
    reference: Json = {"$ref": f"{name}.output"}
    assert [(r.subtask, r.path) for r in find(reference, {name})] == [(name, "")]
    assert resolve(reference, {name: value}) == value


@given(ids, values, texts.filter(lambda text: "$" not in text), texts.filter(lambda text: "$" not in text))
def test_inside_text_a_value_becomes_its_text(name: str, value: Json, before: str, after: str) -> None:
    template = f"{before}${{{name}.output}}{after}"
    assert resolve(template, {name: value}) == before + text_of(value) + after
    assert plain_text(template) is None


@given(ids, st.lists(st.tuples(texts, st.booleans()), min_size=1, max_size=5), values)
def test_a_path_of_names_and_indexes_finds_what_was_put_there(
    name: str, steps: list[tuple[str, bool]], value: Json
) -> None:
    output: Any = value
    path = ""
    for key, is_list in reversed(steps):
        output = [None, output] if is_list else {key: output}
        quoted = orjson.dumps(key).decode()
        path = ("[1]" if is_list else f".{quoted}") + path
    assert path_fault(path) is None
    assert resolve({"$ref": f"{name}.output{path}"}, {name: output}) == value


@given(values)
def test_a_literal_is_its_content(value: Json) -> None:
    assert find({"$literal": value}, ()) == []
    assert resolve({"$literal": value}, {}) == value


@given(texts | st.text(alphabet="${}a.output", max_size=30))
def test_text_made_literal_is_never_changed(text: str) -> None:
    assert resolve(literal(text), {}) == text
    assert find(literal(text), ()) == []


@given(plain_values)
def test_a_value_without_references_is_given_back_itself(value: Json) -> None:
    assert find(value, ()) == []
    assert resolve(value, {}) is value


@given(st.text(alphabet="${}a.output[]0'\"`| ", max_size=40))
def test_any_text_is_either_refused_or_resolved(text: str) -> None:
    outputs: dict[str, Json] = {"a": {"output": [0, None]}}
    try:
        references = find(text, outputs)
    except InvalidPlan:
        return
    if references:
        with suppress(UserError):
            assert isinstance(resolve(text, outputs), str)
    else:
        assert resolve(text, outputs) == plain_text(text)


@given(st.text(alphabet=".[]*?()|&@{}:,'\"=!<>0159-abnull`", max_size=25), values)
@pytest.mark.filterwarnings("ignore:deprecated string literal syntax:PendingDeprecationWarning")
def test_any_path_is_either_refused_or_searched(path: str, value: Json) -> None:
    fault = path_fault(path)
    assert fault is None or fault
    found = search(path, value)
    if fault is None and isinstance(found, (dict, list, str, int, float)):
        orjson.dumps(found)


@given(values, st.integers(0, 3))
def test_a_gap_in_an_input_adds_no_fault(value: Json, place: int) -> None:
    schema = {
        "type": "object",
        "properties": {"v": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "object"}]}},
        "required": ["v"],
        "additionalProperties": False,
    }
    check = InputCheck(schema)
    whole = {fault.pointer for fault in check.faults({"v": {"$literal": value}})}
    if isinstance(value, list) and value:
        gap: Json = {"$ref": "a.output"}
        at = place % len(value)
        opened: list[Json] = [gap if i == at else {"$literal": item} for i, item in enumerate(value)]
        assert {fault.pointer for fault in check.faults({"v": opened})} <= whole
    assert check.faults({"v": {"$ref": "a.output"}}) == []


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(alphabet=st.characters(), max_size=4) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(anything)
def test_every_output_becomes_json_without_a_nul(value: object) -> None:
    cleaned = sanitise(value)
    text = orjson.dumps(cleaned).decode()
    assert "\\u0000" not in text.replace("\\\\", "")
    assert orjson.loads(text) == cleaned
    assert faults_of(cleaned) == []
    assert sanitise(cleaned) == cleaned


@given(values)
def test_what_is_json_already_stays_as_it_is(value: Json) -> None:
    assert sanitise(value) == value
    assert faults_of(value) == []


def _faults(raw: object) -> tuple[Fault, ...]:
    try:
        parse_plan(raw)
    except InvalidPlan as error:
        return error.faults
    return ()


@given(anything)
def test_any_raw_plan_is_read_or_refused_with_pointers(raw: object) -> None:
    for candidate in (raw, {"subtasks": raw}, {"subtasks": [{"id": "a", "type": "TOOL", "input": {"x": raw}}]}):
        faults = _faults(candidate)
        assert all(fault.pointer.startswith("/plan") and fault.message for fault in faults)


@given(st.sampled_from(TaskStatus), st.lists(st.sampled_from(TaskEvent), max_size=30))
def test_any_events_leave_a_task_on_a_way_of_the_table(status: TaskStatus, events: list[TaskEvent]) -> None:
    for event in events:
        try:
            reached = move_task(status, event)
        except Stale:
            assert (status, event) not in TASK_MOVES
        else:
            assert status not in TASK_FINAL
            assert reached is TASK_MOVES[status, event]
            status = reached


@given(st.sampled_from(SubtaskStatus), st.lists(st.sampled_from(SubtaskEvent), max_size=30))
def test_any_events_leave_a_subtask_on_a_way_of_the_table(status: SubtaskStatus, events: list[SubtaskEvent]) -> None:
    for event in events:
        try:
            reached = move_subtask(status, event)
        except Stale:
            assert (status, event) not in SUBTASK_MOVES
        else:
            assert status not in SUBTASK_FINAL
            assert reached is SUBTASK_MOVES[status, event]
            status = reached


amounts = st.floats(0, 64, allow_nan=False)


@given(amounts, amounts, st.dictionaries(st.sampled_from(["a", "b"]), amounts), amounts, amounts)
def test_what_fits_once_fits_and_copies_never_exceed_the_node(
    cpus: float, memory_mb: float, custom: dict[str, float], node_cpus: float, node_a: float
) -> None:
    shape = effective(Resources(num_cpus=cpus, memory_mb=memory_mb, custom=custom), {"sandbox": 1}, ())
    node = NodeShape(total={"CPU": node_cpus, "a": node_a, "memory": 2**25}, labels={}, count_max=1)
    held = copies(shape, node)
    assert (held > 0) is fits(shape, node)
    for name, amount in shape.amounts():
        assert held * amount <= node.total.get(name, 0) * (1 + 1e-6) + 1e-6
    assert ResourceShape.from_json(orjson.loads(orjson.dumps(shape.as_json()))).key() == shape.key()


@given(st.integers(0, 2_000), st.floats(0, 100), st.floats(0, 1_000), st.floats(0, 1))
def test_a_wait_is_at_least_promised_and_at_most_capped(
    retry: int, initial_s: float, max_s: float, jitter: float
) -> None:
    wait_s = delay_s(retry, initial_s=initial_s, max_s=max_s, jitter=jitter)
    assert min(max_s, initial_s * 2.0 ** min(retry, 1_000)) <= wait_s <= max_s


words = st.sampled_from(
    [
        *("1. ", "2. ", "- ", "- [x] ", "* ", "  ", "    ", "\n", "\n\n", "# ", "\0", "\ud800"),
        *("then ", ", then ", "finally ", "meanwhile ", "combine the results ", "if ", "load ", ":"),
        *("先", "然后", "，同时", "最后", "汇总", "。", "：", "下载 "),
        *(
            "```\n",
            "```python\n",
            "```json\n",
            "@core.echo ",
            "@core.noop ",
            "@no.tool ",
            "https://a.org/x ",
            "https://a.org/x",
        ),
        *("{}", '{"value": ', '{"value": 1}', "[", "}", "${load.output}", '{"$ref": "load.output"}', "$${"),
        '{"$secret": "x"}',
    ]
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(words, max_size=40).map("".join) | st.text(max_size=200))
def test_every_prompt_has_an_outline_that_passes_verification(prompt: str) -> None:
    outline = split(prompt, VIEWS, views=VIEWS)
    plan = verify(outline.plan, tools=VIEWS, nodes=[])
    assert all(needed < s.ordinal for s in plan.subtasks for needed in s.dependencies)
    assert outline.language in {"en", "zh", "und"}
    assert all(outline.notes)


endings = st.sampled_from(["，", ",", "、", "。", "；", "”", "…", "的内容", "的內容，", "（主页）", "。\n"])
after_words = st.tuples(endings, st.sampled_from(["然后", "接着", "随后"])).map("".join)
addresses = st.from_regex(
    r"https?://[a-z]{1,9}\.example(:[0-9]{2,4})?(/[a-z0-9~%._-]*[a-z0-9])?(\?[a-z]=[0-9]{1,3})?", fullmatch=True
)


@given(st.lists(st.tuples(after_words, addresses), min_size=1, max_size=8), addresses)
def test_addresses_in_chinese_running_text_are_fetched_as_written_and_in_order(
    rest: list[tuple[str, str]], first: str
) -> None:
    prompt = f"先抓取{first}" + "".join(f"{words}抓取{url}" for words, url in rest)
    fetches = [s for s in split(prompt, VIEWS).plan.subtasks if s.tool == "http.fetch_text"]
    assert [s.input["url"] for s in fetches] == [first, *(url for _, url in rest)]
    assert [s.depends_on for s in fetches] == [(), *((s.id,) for s in fetches[:-1])]


@given(st.lists(words, max_size=20).map("".join))
def test_every_prompt_has_an_outline_also_where_nothing_is_known_of_the_tools(prompt: str) -> None:
    outline = split(prompt, ["core.echo"])
    assert {subtask.tool for subtask in outline.plan.subtasks} == {"core.echo"}
    bare = split(prompt, [])
    assert len(bare.plan.subtasks) >= 1
