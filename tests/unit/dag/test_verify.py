"""Everything that makes a plan one that can't run, and what is worked out of one that can."""

from __future__ import annotations

from typing import Any

import pytest

from rayloom.dag.errors import InvalidPlan
from rayloom.dag.kinds import UNSUPPORTED
from rayloom.dag.nearest import MAX_HINTS
from rayloom.dag.plan import MAX_EDGES, MAX_FAULTS, MAX_SHAPES, Subtask, parse_plan
from rayloom.dag.resources import NodeShape, ResourceShape
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify

TOOLS = {
    view.name: view
    for view in (
        ToolView(name="core.noop", schema={"additionalProperties": False}, resources={"CPU": 0.25}, lane="shared"),
        ToolView(name="core.echo", schema={"required": ["value"]}, resources={"CPU": 0.25}),
        ToolView(
            name="http.request",
            schema={"required": ["url"], "properties": {"url": {"type": "string"}}, "additionalProperties": False},
            resources={"CPU": 0.25},
        ),
        ToolView(name="python.run", schema={"required": ["code"]}, resources={"CPU": 1, "sandbox": 1}),
        ToolView(name="old.tool", schema={}, resources={}, is_active=False),
    )
}
NODES = [
    NodeShape(total={"CPU": 2, "memory": 2**30}, labels={}, count_max=1),
    NodeShape(total={"CPU": 8, "GPU": 1, "memory": 2**34, "sandbox": 4}, labels={"pool": "work"}, count_max=5),
]


def _noop(name: str, *depends_on: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "type": "TOOL", "tool": "core.noop", "depends_on": list(depends_on), **fields}


def _echo(name: str, value: Json, *depends_on: str) -> dict[str, Any]:
    return _noop(name, *depends_on, tool="core.echo", input={"value": value})


def _verify(*subtasks: dict[str, Any], **options: Any) -> VerifiedPlan:
    return verify(parse_plan({"subtasks": list(subtasks)}), **{"tools": TOOLS, "nodes": NODES, **options})


def _faults(*subtasks: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidPlan) as refused:
        _verify(*subtasks, **options)
    return [(fault.pointer.removeprefix("/plan/subtasks/"), fault.message) for fault in refused.value.faults]


def test_a_diamond_with_a_tail_is_worked_out() -> None:
    plan = _verify(
        _noop("a"),
        _noop("b", "a", "a"),
        _echo("c", {"$ref": "a.output"}),
        _noop("d", "c", "b"),
        _noop("e", "d"),
        _noop("f"),
    )
    assert [s.dependencies for s in plan.subtasks] == [(), (0,), (0,), (1, 2), (3,), ()]
    assert [s.dependents for s in plan.subtasks] == [(1, 2), (3,), (3,), (4,), (), ()]
    assert [s.rank for s in plan.subtasks] == [4, 3, 3, 2, 1, 1]
    assert [s.ordinal for s in plan.subtasks] == [0, 1, 2, 3, 4, 5]
    assert [s.references for s in plan.subtasks] == [(), (), ("a",), (), (), ()]
    assert (plan.width, plan.critical_path, plan.sinks) == (2, ("a", "b", "d", "e"), ("e", "f"))
    assert plan.subtasks[2].spec is plan.plan.subtasks[2]
    assert {s.lane for s in plan.subtasks} == {"own"}


def test_references_imply_dependencies_wherever_they_stand() -> None:
    plan = _verify(
        _noop("a"), _noop("b"), _echo("c", ["${a.output} $${b.output}", {"$literal": {"$ref": "x.output"}}], "b")
    )
    assert plan.subtasks[2].dependencies == (0, 1)
    assert plan.subtasks[2].references == ("a",)


def test_a_dependency_may_stand_later_in_the_plan() -> None:
    assert [s.dependencies for s in _verify(_noop("a", "b"), _noop("b")).subtasks] == [(1,), ()]


def test_resources_come_from_the_tool_and_the_subtask() -> None:
    plan = _verify(
        _noop("a"),
        _noop("b"),
        {"id": "c", "type": "CODE_GEN", "input": {"code": "1"}},
        _noop("d", resources={"num_cpus": 2}),
        _noop("e", resources={"num_cpus": 2}),
    )
    shapes = [s.shape for s in plan.subtasks]
    assert shapes[0] == ResourceShape(cpus=0.25)
    assert shapes[2] == ResourceShape(cpus=1, custom=(("sandbox", 1),))
    assert shapes[3] == ResourceShape(cpus=2)
    assert shapes[0] is shapes[1]
    assert shapes[3] is shapes[4]
    assert [s.tool for s in plan.subtasks] == ["core.noop", "core.noop", "python.run", "core.noop", "core.noop"]


def test_a_sandbox_that_no_node_offers_is_not_asked_for() -> None:
    code = {"id": "c", "type": "CODE_GEN", "input": {"code": "1"}}
    assert _verify(code, nodes=NODES[:1]).subtasks[0].shape == ResourceShape(cpus=1)


@pytest.mark.parametrize(
    ("subtasks", "faults"),
    [
        ([_noop("a"), _noop("a")], [("1/id", "`a` is the id of /plan/subtasks/0 already")]),
        ([_noop("get"), _noop("b", "gett")], [("1/depends_on/0", "there is no subtask `gett`; did you mean get?")]),
        ([_noop("a", "a")], [("0/depends_on/0", "`a` can't depend on itself")]),
        ([_echo("a", "${a.output}")], [("0/input/value", "`a` can't use its own output")]),
        ([_echo("a", "${q.output}")], [("0/input/value", "`q.output` refers to `q`, and there is no such subtask")]),
        ([_echo("a", {"$secret": "k"})], [("0/input/value", "there is no secret `k`: this version keeps no secrets")]),
        ([_noop("a", "b"), _noop("b", "a")], [("0/depends_on/0", "closes a cycle: a -> b -> a")]),
        (
            [_noop("x"), _noop("a", "x", "c"), _noop("b", "a"), _noop("c", "b")],
            [("1/depends_on/1", "closes a cycle: a -> b -> c -> a")],
        ),
        ([_echo("a", "${b.output}"), _noop("b", "a")], [("0/input", "closes a cycle: a -> b -> a")]),
        ([_noop("a", tool="python.rum")], [("0/tool", "there is no tool `python.rum`; did you mean python.run?")]),
        ([_noop("a", tool="old.tol")], [("0/tool", "there is no tool `old.tol`")]),
        ([_noop("a", tool="old.tool")], [("0/tool", "the tool `old.tool` is switched off")]),
        ([_noop("a", input={"x": 1})], [("0/input/x", "is not a field here")]),
        ([_noop("a", tool="http.request")], [("0/input/url", "is missing")]),
        ([_noop("a", tool="http.request", input={"url": 1})], [("0/input/url", "1 is not of type 'string'")]),
        (
            [_noop("a", resources={"num_cpus": 64})],
            [("0/resources", "no node could ever give 64 CPU: the largest offers 8 CPU, 1 GPU, 16,384 MiB memory, "
              "4 sandbox, label pool=work")],
        ),
        ([{"id": "a", "type": "TOOL"}], [("0/tool", "is missing: TOOL needs a tool")]),
        ([{"id": "a", "type": "API_CALL"}], [("0/tool", "is missing: API_CALL needs a tool")]),
        ([{"id": "a", "type": "DATA_RETRIEVAL"}], [("0/tool", "is missing: DATA_RETRIEVAL needs a tool")]),
        (
            [{"id": "a", "type": "REASONING", "instruction": "think"}],
            [("0/type", "no model is configured, so this REASONING can't run: use a tool instead")],
        ),
        (
            [{"id": "a", "type": "CODE_GEN", "instruction": "sort"}],
            [("0/type", "no model is configured, so this CODE_GEN can't run: give the code in `input.code`")],
        ),
    ],
)  # fmt: skip
def test_a_fault_has_its_pointer_and_its_reason(subtasks: list[dict[str, Any]], faults: list[tuple[str, str]]) -> None:
    assert _faults(*subtasks) == faults


def test_two_subtasks_of_the_same_bad_kind_are_both_told() -> None:
    assert [pointer for pointer, _ in _faults(_noop("a", tool="no"), _noop("b", tool="no"))] == ["0/tool", "1/tool"]
    wish = {"num_cpus": 99}
    assert len(_faults(_noop("a", resources=wish), _noop("b", resources=wish))) == 2


def test_resources_are_not_judged_where_no_node_is_known() -> None:
    assert _verify(_noop("a", resources={"num_cpus": 64}), nodes=[]).subtasks[0].shape.cpus == 64


@pytest.mark.parametrize(
    "resources", [{"labels": {"pool": "gpu"}}, {"custom": {"tpu": 1}}, {"num_cpus": 8, "num_gpus": 2}]
)
def test_what_no_node_has_is_refused(resources: dict[str, Any]) -> None:
    ((pointer, message),) = _faults(_noop("a", resources=resources))
    assert pointer == "0/resources"
    assert message.startswith("no node could ever give")


def test_globs_say_which_tools_a_task_may_use() -> None:
    assert _verify(_noop("a"), allow=["core.*"], deny=["core.e*"]).sinks == ("a",)
    assert _faults(_noop("a"), allow=["http.*"]) == [
        ("0/tool", "the tool `core.noop` is not among those that `tools.allow` gives this task")
    ]
    assert _faults(_noop("a"), deny=["*.noop"]) == [
        ("0/tool", "the tool `core.noop` is denied to this task by `tools.deny`")
    ]
    # Whose rule it is that forbids it is said: nobody finds it in a list that does not have it.
    assert _faults(_noop("a"), deny=["x"], beyond=["core.noop"]) == [
        ("0/tool", "the tool `core.noop` is none of those that the API key of this task may use")
    ]
    code = {"id": "a", "type": "CODE_GEN", "input": {"code": "1"}}
    assert _faults(code, deny=["python.*"])[0][0] == "0/tool"


_ASKED: dict[str, dict[str, Any]] = {
    "skills": {"skills": ["pdf"]},
    "resources/lane": {"resources": {"lane": "shared"}},
}


@pytest.mark.parametrize("row", UNSUPPORTED, ids=lambda row: row[0])
def test_a_feature_of_a_later_version_is_refused_not_ignored(row: tuple[str, Any, str]) -> None:
    field, is_asked, message = row
    assert _faults(_noop("a", **_ASKED[field])) == [(f"0/{field}", message)]
    assert not is_asked(Subtask.model_validate(_noop("a")))


_NEEDED = "is missing: `on_failure` `{0}` needs it"
FALLBACK: dict[str, Any] = {"tool": "core.noop"}


@pytest.mark.parametrize(
    ("fields", "faults"),
    [
        ({"on_failure": "continue"}, []),
        ({"on_failure": "default", "default": None}, []),
        ({"on_failure": "fallback", "fallback": FALLBACK}, []),
        ({"on_failure": "block", "fallback": None}, []),
        ({"on_failure": "default"}, [("0/default", _NEEDED.format("default"))]),
        ({"on_failure": "fallback"}, [("0/fallback", _NEEDED.format("fallback"))]),
        ({"on_failure": "fallback", "fallback": None}, [("0/fallback", _NEEDED.format("fallback"))]),
        ({"default": 1}, []),
        ({"on_failure": "continue", "default": None}, []),
        ({"on_failure": "block", "fallback": FALLBACK}, []),
        ({"on_failure": "fallback", "default": 1}, [("0/fallback", _NEEDED.format("fallback"))]),
    ],
)
def test_a_policy_has_what_it_needs(fields: dict[str, Any], faults: list[tuple[str, str]]) -> None:
    if faults:
        assert _faults(_noop("a", **fields)) == faults
    else:
        assert _verify(_noop("a", **fields)).sinks == ("a",)


@pytest.mark.parametrize("policy", ["block", "continue", "default"])
def test_a_fallback_has_no_effect_under_another_policy(policy: str) -> None:
    fallback = {"tool": "no.such", "input": {"value": {"$ref": "b.output"}, "x": {"$secret": "s"}}}
    given = _noop("a", on_failure=policy, fallback=fallback, default=None)
    verified = _verify(given, _noop("b", "a"), approval_levels=("execute",))
    assert verified.subtasks[0].spec == Subtask.model_validate({**given, "fallback": None})
    assert (verified.subtasks[0].dependencies, verified.subtasks[0].fallback_references) == ((), ())


@pytest.mark.parametrize("policy", ["block", "continue", "fallback"])
def test_a_default_has_no_effect_under_another_policy(policy: str) -> None:
    (subtask,) = _verify(_noop("a", on_failure=policy, fallback=FALLBACK, default={"x": 1})).subtasks
    assert subtask.spec.default is None


def test_a_text_of_any_length_is_told_in_short() -> None:
    long = "s" * 1_000_000
    used = {"type": "REASONING", "instruction": "x", "id": "r", "input": {"use_tools": [long, long + "*"]}}
    secret = _echo("e", {"$secret": long})
    with pytest.raises(InvalidPlan) as error:
        _verify(_noop("a", long), used, secret, model_available=True)
    assert len(error.value.faults) >= 4
    assert all(len(fault.message) < 400 for fault in error.value.faults)


def _with_fallback(tool: str, input_: dict[str, Json], *depends_on: str, name: str = "a") -> dict[str, Any]:
    return _noop(name, *depends_on, on_failure="fallback", fallback={"tool": tool, "input": input_})


@pytest.mark.parametrize(
    ("tool", "input_", "pointer"),
    [
        ("core.nop", {}, "0/fallback/tool"),
        ("old.tool", {}, "0/fallback/tool"),
        ("http.request", {}, "0/fallback/input/url"),
        ("http.request", {"url": 1}, "0/fallback/input/url"),
        ("core.echo", {"value": {"$ref": "nobody.output"}}, "0/fallback/input/value"),
        ("core.echo", {"value": ["${a.output}"]}, "0/fallback/input/value/0"),
        ("core.echo", {"value": {"$secret": "key"}}, "0/fallback/input/value"),
    ],
)
def test_a_fallback_is_judged_as_its_subtask_is(tool: str, input_: dict[str, Json], pointer: str) -> None:
    assert [found for found, _ in _faults(_with_fallback(tool, input_))] == [pointer]


def test_a_fallback_is_judged_although_the_tool_is_no_good() -> None:
    found = _faults(_with_fallback("core.nop", {}) | {"tool": "no.tool"})
    assert [pointer for pointer, _ in found] == ["0/fallback/tool", "0/tool"]
    assert _faults(_with_fallback("core.echo", {"value": 1}), deny=["core.echo"])[0][0] == "0/fallback/tool"


def test_what_a_fallback_refers_to_is_waited_for() -> None:
    plan = _verify(
        _noop("x"), _noop("y"), _with_fallback("core.echo", {"value": ["${y.output}", {"$ref": "x.output"}]}, "x")
    )
    a = plan.subtasks[2]
    assert (a.dependencies, a.references, a.fallback_references) == ((0, 1), (), ("x", "y"))
    assert plan.sinks == ("a",)
    # The shape stays that of its own tool.
    assert a.shape.cpus == 0.25


def test_a_fallback_may_close_a_cycle() -> None:
    found = _faults(_with_fallback("core.echo", {"value": "${b.output}"}), _noop("b", "a"))
    assert found == [("0/fallback/input", "closes a cycle: a -> b -> a")]


@pytest.mark.parametrize(
    ("fields", "levels", "needs"),
    [
        ({}, (), False),
        ({"require_approval": True}, (), True),
        ({"require_approval": True}, ("admin",), True),
        ({}, ("admin",), False),
        ({}, ("read",), True),
        ({"tool": "strong.tool"}, ("execute",), True),
        ({"on_failure": "fallback", "fallback": {"tool": "strong.tool"}}, ("execute",), True),
        ({"on_failure": "fallback", "fallback": {"tool": "core.noop"}}, ("execute",), False),
    ],
)
def test_who_asks_for_approval(fields: dict[str, Any], levels: tuple[str, ...], needs: bool) -> None:
    strong = ToolView(name="strong.tool", schema={}, resources={}, permission_level="execute")
    plan = _verify(_noop("a", **fields), tools={**TOOLS, "strong.tool": strong}, approval_levels=levels)
    assert plan.subtasks[0].needs_approval is needs


def test_a_subtask_for_a_model_has_no_tool_to_ask_for() -> None:
    given = {"id": "a", "type": "REASONING", "instruction": "think"}
    assert not _verify(given, model_available=True, approval_levels=("read",)).subtasks[0].needs_approval


def test_the_other_lanes_are_taken() -> None:
    plan = _verify(_noop("a", resources={"lane": "own"}), _noop("b", resources={"lane": "auto"}))
    assert [s.lane for s in plan.subtasks] == ["own", "own"]


def test_code_needs_something_to_run_or_to_go_by() -> None:
    found = _faults({"id": "a", "type": "CODE_GEN"})
    assert ("0/tool", "is missing: CODE_GEN needs a tool, code in `input.code`, or an instruction") in found
    assert _verify({"id": "a", "type": "CODE_GEN", "tool": "core.noop"}).subtasks[0].tool == "core.noop"


def test_reasoning_needs_an_instruction_and_no_tool() -> None:
    found = _faults({"id": "a", "type": "REASONING", "tool": "core.noop"}, model_available=True)
    assert found == [
        ("0/instruction", "is missing: REASONING needs an instruction"),
        ("0/tool", "REASONING takes no tool"),
    ]


def test_with_a_model_its_work_is_taken() -> None:
    plan = _verify(
        {"id": "a", "type": "REASONING", "instruction": "think", "input": {"x": 1}},
        {"id": "b", "type": "CODE_GEN", "instruction": "sort", "input": {"data": {"$ref": "a.output"}}},
        model_available=True,
    )
    assert [(s.tool, s.shape.cpus) for s in plan.subtasks] == [("", 0.25), ("", 1)]
    assert plan.subtasks[1].shape.custom == (("sandbox", 1),)


THINKS = {"id": "a", "type": "REASONING", "instruction": "think"}
WRITES = {"id": "a", "type": "CODE_GEN", "instruction": "sort"}
MORE_TOOLS = {
    **TOOLS,
    "skill.pdf": ToolView(name="skill.pdf", schema={}, resources={}, type="SKILL"),
    "strong.tool": ToolView(name="strong.tool", schema={}, resources={"GPU": 1}, permission_level="execute"),
}


@pytest.mark.parametrize(
    ("subtask", "faults"),
    [
        ({**THINKS, "skills": ["skill.pdf"]}, []),
        ({**WRITES, "skills": ["skill.pdf"]}, []),
        (
            {**THINKS, "skills": ["skill.pdff", "core.noop"]},
            [
                ("0/skills/0", "there is no tool `skill.pdff`; did you mean skill.pdf?"),
                ("0/skills/1", "`core.noop` is no Skill: their names begin with `skill.`"),
            ],
        ),
        (
            _noop("a", skills=["skill.pdf"]),
            [("0/skills", "no model does this subtask that could go by them: call the tool `skill.<name>`")],
        ),
        ({**THINKS, "input": {"output_schema": {"type": "object"}, "x": 1}}, []),
        ({**THINKS, "input": {"output_schema": {"$literal": {"$ref": "#/$defs/x", "$defs": {"x": True}}}}}, []),
        ({**WRITES, "input": {"output_schema": {"type": 7}}}, [("0/input/output_schema", "is no JSON Schema: ")]),
        ({**THINKS, "input": {"output_schema": "text"}}, [("0/input/output_schema", "'text' is not of type 'object'")]),
        ({**THINKS, "input": {"use_tools": ["core.*", "http.request"], "max_steps": 3}}, []),
        (
            {**THINKS, "input": {"use_tools": {"$literal": ["core.nope"]}}},
            [("0/input/use_tools/0", "there is no tool `core.nope`; did you mean core.noop")],
        ),
        ({**THINKS, "input": {"use_tools": [1]}}, [("0/input/use_tools/0", "1 is not of type 'string'")]),
        ({**THINKS, "input": {"max_steps": 3}}, [("0/input", "'use_tools' is a dependency of 'max_steps'")]),
        (
            {**THINKS, "input": {"use_tools": ["core.nope", "old.*", "strong.tool"]}},
            [
                ("0/input/use_tools/0", "there is no tool `core.nope`; did you mean core.noop"),
                ("0/input/use_tools/1", "there is no tool `old.*` that a model may call for this task"),
                (
                    "0/input/use_tools/2",
                    "the tool `strong.tool` wants approval, so no model may call it by itself",
                ),
            ],
        ),
        ({**WRITES, "input": {"max_repairs": 9, "data": [1]}}, [("0/input/max_repairs", "9 is greater than the ")]),
        ({**WRITES, "input": {"files": 3}}, [("0/input/files", "3 is not of type 'object'")]),
    ],
)
def test_what_a_model_is_given_is_judged(subtask: dict[str, Any], faults: list[tuple[str, str]]) -> None:
    runs = ToolView(
        name="python.run", schema={"required": ["code"], "properties": {"files": {"type": "object"}, "code": {}}},
        resources={},
    )  # fmt: skip
    options = {"tools": {**MORE_TOOLS, "python.run": runs}, "model_available": True, "approval_levels": ("execute",)}
    if not faults:
        assert _verify(subtask, **options).sinks == ("a",)
        return
    found = _faults(subtask, **options)
    assert [
        (where, message[: len(fault)]) for (where, message), (_, fault) in zip(found, faults, strict=True)
    ] == faults


def test_a_schema_by_reference_is_judged_when_it_is_there() -> None:
    given = {**THINKS, "input": {"output_schema": {"$ref": "b.output.schema"}}}
    assert _verify(given, _noop("b"), model_available=True).subtasks[0].dependencies == (1,)


@pytest.mark.parametrize(
    "named", [{"$ref": "b.output.names"}, ["core.noop", {"$ref": "b.output.name"}]], ids=["all", "one of them"]
)
def test_which_tools_a_model_may_call_is_no_matter_of_outputs(named: Any) -> None:
    found = _faults({**THINKS, "input": {"use_tools": named}}, _noop("b"), model_available=True)
    assert found == [("0/input/use_tools", "must be written out: it can't hold references")]


def test_code_that_a_model_writes_needs_what_runs_it() -> None:
    found = _faults(WRITES, model_available=True, deny=["python.*"])
    assert found == [("0/tool", "the tool `python.run` is denied to this task by `tools.deny`")]
    two = _verify(WRITES, {**WRITES, "id": "b"}, model_available=True)
    assert two.subtasks[0].shape is two.subtasks[1].shape
    found = _faults(WRITES, model_available=True, tools={"core.noop": TOOLS["core.noop"]})
    assert found == [("0/tool", "there is no tool `python.run`")]
    runs = ToolView(name="python.run", schema={}, resources={}, permission_level="execute")
    plan = _verify(WRITES, model_available=True, tools={"python.run": runs}, approval_levels=("execute",))
    assert plan.subtasks[0].needs_approval


def test_a_model_that_calls_tools_asks_for_what_they_do() -> None:
    calls = {**THINKS, "input": {"use_tools": ["strong.*", "python.run"]}}
    shape = _verify(calls, model_available=True, tools=MORE_TOOLS).subtasks[0].shape
    assert shape == ResourceShape(cpus=1, gpus=1, custom=(("sandbox", 1),))


def test_faults_are_told_together_but_not_without_end() -> None:
    found = _faults(_noop("a", "x", skills=["pdf"], tool="no"), _noop("b", "c"), _noop("c", "b"), _noop("b"))
    assert [pointer for pointer, _ in found] == ["3/id", "0/depends_on/0", "0/skills", "0/tool", "1/depends_on/0"]
    assert len(_faults(*(_noop(f"s{i}", "nobody") for i in range(MAX_FAULTS + 50)))) == MAX_FAULTS
    assert len(_faults(*(_noop("same") for i in range(MAX_FAULTS + 50)))) == MAX_FAULTS


@pytest.mark.parametrize(
    "subtask",
    [
        _noop("a", *["mama"] * 5_000),
        _echo("a", [{"$ref": "mama.output"}] * 5_000),
        _echo("a", ["${mama.output}"] * 5_000),
    ],
)
def test_the_faults_of_one_subtask_have_an_end_and_few_of_them_a_hint(subtask: dict[str, Any]) -> None:
    found = _faults(subtask, _noop("mamas"))
    assert len(found) == MAX_FAULTS
    assert sum("did you mean mamas?" in message for _, message in found) == MAX_HINTS


def test_a_long_cycle_is_told_in_short() -> None:
    count = 1_000
    ((pointer, message),) = _faults(*(_noop(f"s{i}", f"s{(i - 1) % count}") for i in range(count)))
    assert pointer == "0/depends_on/0"
    assert message.startswith("closes a cycle: s0 -> s1 ->")
    assert "s14 -> (970 more) -> s985" in message
    assert message.endswith("-> s999 -> s0")


def test_the_pointer_starts_where_the_caller_says() -> None:
    with pytest.raises(InvalidPlan) as refused:
        verify(parse_plan({"subtasks": [_noop("a", "b")]}), tools=TOOLS, nodes=NODES, pointer="")
    assert refused.value.faults[0].pointer == "/subtasks/0/depends_on/0"


def test_of_what_is_done_only_its_place_in_the_plan_is_judged() -> None:
    gone = {"id": "gone", "type": "TOOL", "tool": "no.tool", "input": {"x": {"$ref": "a.output"}}}
    # Neither a tool that is gone nor one that is off, nor an input that the tool would not take any more.
    done = [_noop("a", tool="old.tool"), gone, _noop("b", input={"wrong": 1}, resources={"num_gpus": 99})]
    plan = _verify(*done, _noop("c", "gone", "b"), done={"a", "gone", "b"})
    assert [subtask.dependencies for subtask in plan.subtasks] == [(), (0,), (), (1, 2)]
    assert plan.subtasks[1].shape == ResourceShape(cpus=1)
    assert len(_faults(*done, _noop("c", "gone", "b"), done={"a"})) == 3
    assert _faults(_noop("a", "nobody"), done={"a"})


def test_nothing_new_can_depend_on_what_gave_nothing() -> None:
    old = [_noop("a"), _noop("b", "a"), _noop("c")]
    known = {"a", "b", "c"}
    assert _verify(*old, _noop("d", "c"), _noop("e", "d"), done=known, unusable={"a", "b"}).sinks == ("b", "e")
    assert _faults(*old, _noop("d", "b", "c", "a"), done=known, unusable={"a", "b"}) == [
        ("3", "`a` gave nothing, so nothing can depend on it"),
        ("3", "`b` gave nothing, so nothing can depend on it"),
    ]


def test_thousands_of_subtasks_are_verified() -> None:
    plan = _verify(*(_echo(f"s{i}", {"$ref": f"s{i // 2}.output.value"} if i else 0) for i in range(3_000)))
    assert len(plan.subtasks) == 3_000
    assert plan.subtasks[2_999].dependencies == (1_499,)
    assert len(plan.critical_path) == 13


def test_a_plan_asks_for_a_bounded_number_of_resource_shapes() -> None:
    asked = [_noop(f"n{i}", resources={"num_cpus": (1 + i % (MAX_SHAPES + 3)) / 100}) for i in range(200)]
    assert len(_verify(*asked[:MAX_SHAPES], *[dict(asked[0], id="again")]).subtasks) == MAX_SHAPES + 1
    message = "a plan asks for at most 64 different sets of resources, and this is one more"
    assert _faults(*asked) == [("64/resources", message)]
    with_defaults = [*asked[:MAX_SHAPES], _noop("plain", tool="http.request", input={"url": "x"})]
    assert _faults(
        *[dict(each, resources={**each.get("resources", {}), "memory_mb": 1}) for each in asked[:MAX_SHAPES]],
        with_defaults[-1],
    ) == [("64/resources", message)]


def test_a_plan_has_a_bounded_number_of_dependencies() -> None:
    width = 500
    assert width * width * 2 == MAX_EDGES
    names = [f"a{i}" for i in range(width)]
    layers = [[_noop(name) for name in names]]
    layers.append([_noop(f"b{i}", *names) for i in range(width)])
    layers.append([_noop(f"c{i}", *(subtask["id"] for subtask in layers[1])) for i in range(width)])
    allowed = [subtask for layer in layers for subtask in layer]
    assert _verify(*allowed).width == width
    message = "a plan has at most 500,000 dependencies, and here it has more"
    assert _faults(*allowed, _noop("d", "a0", "a1")) == [("1500/depends_on", message)]
    assert _faults(*allowed, _echo("d", {"$ref": "a1.output"})) == [("1500/input", message)]
