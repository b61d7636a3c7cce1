"""What is judged of a plan where the shape of some subtasks is wrong."""

from __future__ import annotations

import pytest

from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.plan import parse_plan
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.sound_part import SoundPart, sound_part

NOOP: JsonObject = {"type": "TOOL", "tool": "core.noop"}


def _part(*subtasks: Json, **more: Json) -> SoundPart | None:
    raw: JsonObject = {"subtasks": list(subtasks), **more}
    with pytest.raises(InvalidPlan) as caught:
        parse_plan(raw, pointer="/p")
    return sound_part(raw, caught.value.faults, pointer="/p")


def test_fields_with_faults_are_left_out() -> None:
    part = _part({**NOOP, "id": "a"}, {**NOOP, "id": "b", "depends_on": ["a"], "timeout_s": 0}, zzz=1)
    assert part is not None
    assert part.plan == {"subtasks": [{**NOOP, "id": "a"}, {**NOOP, "id": "b", "depends_on": ["a"]}]}
    # What it waits for so long says nothing about the rest of it.
    assert part.aside == frozenset()
    faults = [Fault("/p/subtasks/1/timeout_s", "x"), Fault("/p/subtasks/1/tool", "x"), Fault("/p", "x")]
    assert part.told(faults) == faults[1:]
    assert part.told([Fault("/p/subtasks/0/timeout_s", "x")]) == [Fault("/p/subtasks/0/timeout_s", "x")]


@pytest.mark.parametrize(
    "fault", [{"type": "TOLL"}, {"tool": ""}, {"input": 1}, {"instrution": "x"}, {"on_failure": 1}]
)
def test_what_may_be_anything_stands_aside(fault: JsonObject) -> None:
    part = _part({**NOOP, "id": "a", "depends_on": ["b"], **fault}, {**NOOP, "id": "b"})
    assert part is not None
    assert part.aside == {"a"}
    assert len(parse_plan(part.plan).subtasks[0].depends_on) == 1


@pytest.mark.parametrize("subtask", [1, {}, {**NOOP, "id": "a b"}, NOOP])
def test_without_its_id_nothing_is_known_of_the_others(subtask: Json) -> None:
    assert _part({**NOOP, "id": "a"}, subtask) is None


def test_what_is_no_list_of_subtasks_has_no_sound_part() -> None:
    assert sound_part(1, [Fault("/p", "x")], pointer="/p") is None
    assert sound_part({"subtasks": 1}, [Fault("/p/subtasks", "x")], pointer="/p") is None
    assert sound_part({"subtasks": []}, [Fault("/p/subtasks", "x")], pointer="/p") is None
    assert sound_part({"subtasks": [[1]]}, [Fault("/p/subtasks/0/0", "x")], pointer="/p") is None
    assert sound_part({"subtasks": [{}]}, [Fault("/p/subtasks/0/input", "x")], pointer="/p") is None
    assert sound_part({"subtasks": [{"id": []}]}, [Fault("/p/subtasks/0/input", "x")], pointer="/p") is None


def test_of_more_faults_than_are_told_some_are_not_known() -> None:
    assert _part(*({**NOOP, "id": f"s{number}", "timeout_s": 0} for number in range(101))) is None
