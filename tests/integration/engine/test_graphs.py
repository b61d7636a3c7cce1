"""Large plans: a random graph of 1,000, every value followed to the sinks, and one of 10,000 in little memory."""

from __future__ import annotations

import random

import pytest

from rayloom.dag.values import Json, JsonObject
from tests.integration.instance import FAULTS, Instance
from tests.integration.runs import Run, echo, expect_order, step
from tests.integration.waiting import wait_until

SEED = 20_260
GIB = 1024**3


def test_a_random_graph_of_1000_is_honoured_to_the_letter(instance: Instance) -> None:
    chance = random.Random(SEED)
    plan: list[JsonObject] = []
    expected: dict[str, Json] = {}
    for i in range(1_000):
        id_, earlier = f"n{i}", [f"n{chance.randrange(max(0, i - 100), i)}" for _ in range(chance.randrange(4)) if i]
        if chance.random() < 0.3 and earlier:
            # What it gives is what the one before gave, with its own name behind.
            source = earlier[0]
            plan.append(echo(id_, {"from": {"$ref": f"{source}.output.name"}, "name": id_}, *earlier[1:]))
            expected[id_] = {"from": source, "name": id_}
        else:
            plan.append(echo(id_, {"name": id_}, *earlier))
            expected[id_] = {"name": id_}
    with instance.client() as client:
        run = Run.submit(instance, client, plan, title="a thousand")
        task = run.completed(within_s=240)
        subtasks = run.subtasks()
        assert {id_: subtask["output"] for id_, subtask in subtasks.items()} == expected
        inner = {dependency for subtask in subtasks.values() for dependency in subtask["depends_on"]}
        assert task["result"] == {id_: value for id_, value in expected.items() if id_ not in inner}
        assert FAULTS or run.attempts() == {1: 1_000}
        expect_order(subtasks)
        run.expect_sound()


@pytest.mark.timeout(900)
def test_10000_subtasks_finish_and_no_process_grows_past_2_gib(instance: Instance) -> None:
    # A hundred chains of ninety-nine, joined at the end: as wide as it is long.
    chains = [
        step(f"c{chain}.{link}", "core.noop", {}, *([f"c{chain}.{link - 1}"] if link else []))
        for link in range(99)
        for chain in range(100)
    ]
    ends = [f"c{chain}.98" for chain in range(100)]
    plan = [*chains, *(echo(f"end{i}", i, end) for i, end in enumerate(ends[:-1])), echo("sum", "done", *ends)]
    assert len(plan) == 10_000
    largest: dict[str, int] = {}
    with instance.client() as client:
        run = Run.submit(instance, client, plan, title="ten thousand")

        def ended() -> bool:
            for process in instance.processes():
                largest[process.title] = max(largest.get(process.title, 0), process.rss_bytes())
            (row,) = instance.sql("SELECT status FROM tasks WHERE id = $1::uuid", run.task_id)
            return row["status"] not in ("PENDING", "SPLITTING", "PROCESSING")

        wait_until(ended, within_s=800, every_s=1, what=run.progress)
        task = run.completed()
        assert task["progress"]["completed"] == 10_000
        assert task["result"]["sum"] == "done"
        assert task["subtasks_next_cursor"]
        assert FAULTS or run.attempts() == {1: 10_000}
        expect_order(run.subtasks())
    assert max(largest.values()) < 2 * GIB, sorted(largest.items(), key=lambda item: -item[1])[:3]
