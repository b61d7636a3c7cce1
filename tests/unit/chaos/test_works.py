"""The work of a chaos run depends on its seed alone, holds everything that there is to hold, and gives what it says."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.drill import MODULUS
from tests.chaos.plans import ANSWER, CALL, FILE_BYTES, TOOL
from tests.chaos.works import KINDS, MENDS, Work, works

OUTSIDE = "http://127.0.0.1:1"
FALLBACK = {"tool": "core.echo", "input": {"value": {"status": ANSWER}}}


def subtasks_of(work: Work) -> list[dict[str, Any]]:
    plan: Any = work.body["plan"]
    found: list[dict[str, Any]] = plan["subtasks"]
    return found


def given(work: Work, inputs: dict[str, Any]) -> dict[str, int]:
    """What the last subtask gives when each does what its tool does, with these inputs in place of its own."""
    outputs: dict[str, Any] = {}
    for subtask in subtasks_of(work):
        input_ = inputs.get(subtask["id"], subtask["input"])
        if subtask["tool"] == CALL:
            outputs[subtask["id"]] = {"status": ANSWER}
        elif subtask["tool"] == "core.echo":
            outputs[subtask["id"]] = subtask["input"]["value"]
        elif subtask["tool"] != TOOL:
            outputs[subtask["id"]] = {"size": FILE_BYTES, "exit_code": 0}
        elif input_.get("fails", 0) and work.kind in ("default", "continue") and subtask["id"] == work.chosen:
            outputs[subtask["id"]] = subtask.get("default")
        else:
            if work.kind == "fallback" and subtask["id"] == work.chosen:
                input_ = subtask["fallback"]["input"]
            values = []
            for reference in input_["values"]:
                id_, _, field = reference["$ref"].partition(".output.")
                values.append((outputs[id_] or {}).get(field) or 0)
            outputs[subtask["id"]] = {"value": (input_["weight"] + sum(values)) % MODULUS}
    last: dict[str, int] = outputs[subtasks_of(work)[-1]["id"]]
    return last


def test_the_same_seed_gives_the_same_work() -> None:
    assert list(works(3, 500, outside=OUTSIDE)) == list(works(3, 500, outside=OUTSIDE))
    assert list(works(3, 500, outside=OUTSIDE)) != list(works(4, 500, outside=OUTSIDE))


def test_five_thousand_subtasks_hold_everything_and_give_what_they_say() -> None:
    todo = list(works(1, 5_000, outside=OUTSIDE))
    assert sum(work.subtasks for work in todo) >= 5_000
    assert len({work.title for work in todo}) == len(todo)
    kinds = Counter(work.kind for work in todo)
    assert set(kinds) == set(KINDS)
    assert {work.mend for work in todo} == {None, *MENDS}
    assert {subtask["tool"] for work in todo for subtask in subtasks_of(work)} == {
        TOOL, CALL, "files.write", "python.run", "core.echo",
    }  # fmt: skip
    for name in ("again_after_s", "cancel_after_s", "decision", "fork"):
        assert any(getattr(work, name) is not None for work in todo), name
    calls = [subtask for work in todo for subtask in subtasks_of(work) if subtask["tool"] == CALL]
    assert {subtask.get("on_failure") for subtask in calls} == {None, "fallback"}
    assert all(subtask["fallback"] == FALLBACK for subtask in calls if "fallback" in subtask)
    assert any("callback_url" in work.body for work in todo)
    for work in todo:
        if "COMPLETED" in work.ends:
            assert given(work, {}) == work.result, work.title
        if work.fork is not None:
            assert given(work, work.fork.inputs) == work.fork.result, work.title
