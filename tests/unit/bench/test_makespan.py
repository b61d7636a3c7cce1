"""What is timed is the graph that a record wants, and what the table says of it."""

from __future__ import annotations

import pytest

from bench.planner.makespan import WRITES, Timed, given_plan, parallel, table, written_plan
from bench.planner.records import Record, records
from rayloom.actors.described import describe
from rayloom.dag.plan import parse_plan
from rayloom.dag.planning.verdict import judge
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.tools.builtin.catalogue import BUILTINS

TOOLS = ToolSnapshot(
    version=1, tools={name: describe(name, f"builtin:{name}", tool) for name, tool in BUILTINS.items()}
).views()


def edges(plan: VerifiedPlan) -> set[tuple[str, str]]:
    return {
        (plan.subtasks[needed].spec.id, subtask.spec.id) for subtask in plan.subtasks for needed in subtask.dependencies
    }


@pytest.mark.parametrize("record", parallel(), ids=lambda record: record.id)
def test_a_plan_is_the_graph_of_its_record_given_or_written(record: Record) -> None:
    given = verify(parse_plan(given_plan(record, "http://x")), tools=TOOLS, nodes=(), model_available=True)
    assert edges(given) == record.edges
    text = written_plan(record, "http://x")
    read = judge(text, prompt=record.prompt, language=record.language, tools=TOOLS, nodes=())
    assert read.verified is not None, read.faults
    assert edges(read.verified) == record.edges
    writing = {subtask.spec.id for subtask in given.subtasks if subtask.spec.tool == "http.request"}
    assert writing == {node.id for node in record.nodes if node.tool in WRITES}


def test_what_writes_is_a_tool_of_some_record() -> None:
    assert len(parallel()) >= 30
    assert {name for record in records().values() for name in record.tools} >= WRITES


def test_the_table_says_what_each_is_beside_one_call_after_the_other() -> None:
    given = [
        Timed(record="a", calls=4, longest=2, took_s=2.0),
        Timed(record="b", calls=4, longest=3, took_s=4.0),
        Timed(record="c", calls=3, longest=2, took_s=2.0),
    ]
    prompt = [Timed(record="a", calls=4, longest=2, took_s=5.0, planned_s=4.0, lead_s=3.0)]
    rows = table({"given": given, "together": given, "prompt": prompt}).splitlines()
    assert rows[2] == "| given | 3 | 11 | 2.0 | 4.0 | 1.50 (1.00 to 2.00) | 1.50 | 1 of 1 |  |"
    assert rows[3] == "| together | 3 | 11 | 4.0 (all) | 11.0 (all) | 2.75 | |  |  |"
    assert rows[4] == "| prompt | 1 | 4 | 5.0 | 8.0 | 1.60 (1.60 to 1.60) | 2.00 | 0 of 1 | 3.0 (3.0) |"
