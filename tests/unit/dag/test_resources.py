"""What is asked for, what is offered, and whether it fits."""

from __future__ import annotations

import orjson
import pytest

from rayloom.dag.plan import Resources
from rayloom.dag.resources import (
    BYTES_PER_MB,
    WEIGHTLESS_COPIES,
    NodeShape,
    ResourceShape,
    copies,
    effective,
    fits,
    largest,
    with_more_memory,
)

NODE = NodeShape(
    total={"CPU": 4, "GPU": 1, "memory": 8 * 2**30, "sandbox": 2, "node:10.0.0.1": 1, "object_store_memory": 9},
    labels={"pool": "work", "zone": "a"},
    count_max=3,
)


def test_a_subtask_without_wishes_asks_what_its_tool_asks() -> None:
    shape = effective(Resources(), {"CPU": 1, "sandbox": 1, "GPU": 0.5, "memory": 1000.4}, {"CPU", "sandbox"})
    assert shape == ResourceShape(cpus=1, gpus=0.5, memory_bytes=1000, custom=(("sandbox", 1.0),))
    assert effective(Resources(), {}, ()) == ResourceShape(cpus=1)


def test_wishes_win_over_defaults() -> None:
    wishes = Resources(num_cpus=2, num_gpus=1, memory_mb=1, custom={"sandbox": 2, "b": 1}, labels={"z": "1", "a": "2"})
    shape = effective(wishes, {"CPU": 1, "sandbox": 1, "GPU": 0.5, "memory": 1}, {"sandbox"})
    assert shape == ResourceShape(
        cpus=2, gpus=1, memory_bytes=1_048_576, custom=(("b", 1), ("sandbox", 2)), labels=(("a", "2"), ("z", "1"))
    )
    assert effective(Resources(num_cpus=0), {"CPU": 1}, ()).cpus == 0


def test_a_default_custom_resource_is_asked_for_only_where_it_is_offered() -> None:
    assert effective(Resources(), {"CPU": 1, "sandbox": 1}, {"CPU"}).custom == ()
    assert effective(Resources(custom={"rare": 1}), {}, {"CPU"}).custom == (("rare", 1.0),)
    assert effective(Resources(custom={"sandbox": 0}), {"sandbox": 1}, {"sandbox"}).custom == ()


def test_amounts_are_as_fine_as_ray_knows_them() -> None:
    assert effective(Resources(num_cpus=0.30000001), {}, ()) == effective(Resources(num_cpus=0.3), {}, ())
    assert effective(Resources(num_cpus=0.00000001), {}, ()).cpus == 0.0001


def test_a_shape_has_one_key_whatever_way_it_came() -> None:
    shape = ResourceShape(cpus=1, memory_bytes=5, custom=(("a", 1),), labels=(("k", "v"),))
    again = ResourceShape.from_json(orjson.loads(orjson.dumps(shape.as_json())))
    assert again == shape
    assert again.key() == shape.key() == ResourceShape.from_json(shape.as_json()).key()
    assert len(shape.key()) == 16
    assert shape.key() != ResourceShape(cpus=2).key()
    whole = {"cpus": 1, "gpus": 0, "memory_bytes": 5, "custom": {"a": 1}, "labels": {"k": "v"}}
    assert ResourceShape.from_json(whole).key() == shape.key()


@pytest.mark.parametrize(
    "change", [{"cpus": "1"}, {"cpus": True}, {"custom": []}, {"labels": None}, {"gpus": None}, {"custom": {"a": "b"}}]
)
def test_what_is_no_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        ResourceShape.from_json({**ResourceShape().as_json(), **change})


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (ResourceShape(cpus=1), 4),
        (ResourceShape(cpus=0.1), 40),
        (ResourceShape(cpus=0.3), 13),
        (ResourceShape(cpus=1, custom=(("sandbox", 1),)), 2),
        (ResourceShape(cpus=4, gpus=1, memory_bytes=8 * 2**30), 1),
        (ResourceShape(), WEIGHTLESS_COPIES),
        (ResourceShape(labels=(("pool", "work"),)), WEIGHTLESS_COPIES),
        (ResourceShape(cpus=4.5), 0),
        (ResourceShape(gpus=2), 0),
        (ResourceShape(memory_bytes=9 * 2**30), 0),
        (ResourceShape(custom=(("rare", 0.1),)), 0),
        (ResourceShape(cpus=1, labels=(("pool", "gpu"),)), 0),
        (ResourceShape(cpus=1, labels=(("rack", "a"),)), 0),
    ],
)
def test_a_node_holds_as_many_as_fit(shape: ResourceShape, expected: int) -> None:
    assert copies(shape, NODE) == expected
    assert fits(shape, NODE) == (expected > 0)


def test_a_node_type_of_which_there_can_be_none_offers_nothing() -> None:
    none = NodeShape(total={"CPU": 64}, labels={}, count_max=0)
    assert not fits(ResourceShape(cpus=1), none)


def test_the_largest_is_the_one_that_comes_nearest() -> None:
    small = NodeShape(total={"CPU": 2, "GPU": 1}, labels={"pool": "gpu"}, count_max=1)
    big = NodeShape(total={"CPU": 16}, labels={}, count_max=1)
    assert largest(ResourceShape(cpus=64), [small, big]) is big
    assert largest(ResourceShape(cpus=64, gpus=1), [small, big]) is small
    assert largest(ResourceShape(cpus=1, labels=(("pool", "gpu"), ("x", "y"))), [big, small]) is small


def test_shapes_are_shown_in_words() -> None:
    shape = ResourceShape(cpus=0.5, memory_bytes=2**30, custom=(("sandbox", 1),), labels=(("pool", "x"),))
    assert str(shape) == "0.5 CPU, 1,024 MiB memory, 1 sandbox, label pool=x"
    assert str(ResourceShape()) == "nothing"
    assert str(NODE) == "4 CPU, 1 GPU, 8,192 MiB memory, 2 sandbox, label pool=work, label zone=a"
    assert str(NodeShape(total={}, labels={}, count_max=1)) == "nothing"


def test_more_memory_is_twice_as_much_as_far_as_a_node_gives_it() -> None:
    gib = 1024 * BYTES_PER_MB
    small = NodeShape(total={"CPU": 8, "memory": 3.0 * gib}, labels={}, count_max=1)
    large = NodeShape(total={"CPU": 2, "memory": 64.0 * gib}, labels={}, count_max=1)
    asked = ResourceShape(cpus=4, memory_bytes=1 * gib)
    assert with_more_memory(asked, [small, large]) == ResourceShape(cpus=4, memory_bytes=2 * gib)
    assert with_more_memory(ResourceShape(cpus=4, memory_bytes=2 * gib), [small, large]) == ResourceShape(
        cpus=4, memory_bytes=3 * gib
    )
    assert with_more_memory(ResourceShape(cpus=4, memory_bytes=3 * gib), [small, large]) is None
    assert with_more_memory(ResourceShape(cpus=1), [large]) == ResourceShape(cpus=1, memory_bytes=2 * gib)
    assert with_more_memory(asked, []) is None
