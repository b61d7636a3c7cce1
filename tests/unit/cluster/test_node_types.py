"""The kinds of node that an autoscaler could add, from the file that it was started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayloom.cluster import node_types as module
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.node_types import node_types
from rayloom.dag.resources import NodeShape

OURS = Path(__file__).resolve().parents[3] / "ray-cluster.yaml"
ADDRESS = "127.0.0.1:6379"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bootstrap.yaml"
    monkeypatch.setattr(module, "BOOTSTRAP", path)
    return path


def test_our_own_file_gives_its_workers_and_not_its_head() -> None:
    assert node_types(OURS, ADDRESS) == (
        NodeShape(total={"CPU": 8, "sandbox": 8}, labels={"pool": "cpu"}, count_max=16),
        NodeShape(total={"CPU": 8, "GPU": 1, "sandbox": 8}, labels={"pool": "gpu"}, count_max=4),
    )


def test_without_a_file_nothing_is_known_beyond_what_lives() -> None:
    assert node_types(None, ADDRESS) == ()


def test_on_the_head_of_a_cluster_the_file_of_ray_up_is_found(nowhere: Path) -> None:
    nowhere.write_text(OURS.read_text())
    assert len(node_types(None, ADDRESS)) == 2
    # A local Ray of ours has no autoscaler, whatever else this machine is.
    assert node_types(None, "") == ()


def test_numbers_that_are_left_out_are_those_of_ray(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    kinds = {"head": {"resources": {"CPU": 2}}, "a": {"resources": {"CPU": 1}}, "b": {"max_workers": 9}}
    path.write_text(json.dumps({"max_workers": 5, "head_node_type": "head", "available_node_types": kinds}))
    assert node_types(path, ADDRESS) == (
        NodeShape(total={"CPU": 1}, labels={}, count_max=5),
        NodeShape(total={}, labels={}, count_max=5),
    )


@pytest.mark.parametrize(
    "text", ["", "a: [", "[]", "available_node_types: 3", "available_node_types: {a: {max_workers: x}}"]
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(StartRefused, match="RAYLOOM_RAY_CLUSTER_FILE") as caught:
        node_types(path, ADDRESS)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="No such file"):
        node_types(tmp_path / "missing.yaml", ADDRESS)
