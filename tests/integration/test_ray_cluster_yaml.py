"""ray-cluster.yaml is a cluster that Ray accepts, and in which every built-in tool finds the resources it asks for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rayloom.tools.builtin.catalogue import BUILTINS

ROOT = Path(__file__).resolve().parents[2]
LIGHT = {"CPU": 0.25}
SANDBOXED = {"CPU": 1, "sandbox": 1}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray-cluster.yaml").read_text())
    return loaded


def _offers(config: dict[str, Any], request: dict[str, float]) -> set[str]:
    types = config["available_node_types"]
    return {
        name
        for name, each in types.items()
        if all(each["resources"].get(resource, 0) >= amount for resource, amount in request.items())
    }


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_would_refuse_a_mistake(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="no_such_key"):
        validate_config(prepare_config({**copy.deepcopy(config), "no_such_key": 1}))


def test_the_types_are_those_that_the_documents_name(config: dict[str, Any]) -> None:
    resources = {name: each["resources"] for name, each in config["available_node_types"].items()}
    assert resources == {
        "head": {"CPU": 0},
        "cpu": {"CPU": 8, "sandbox": 8},
        "gpu": {"CPU": 8, "GPU": 1, "sandbox": 8},
    }
    assert config["head_node_type"] == "head"


def test_workers_grow_and_shrink(config: dict[str, Any]) -> None:
    for name, each in config["available_node_types"].items():
        if name != config["head_node_type"]:
            assert each["min_workers"] < each["max_workers"] <= config["max_workers"]
            assert each["idle_timeout_s"] > 0


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_a_built_in_tool_fits_on_workers_and_never_on_the_head(config: dict[str, Any], name: str) -> None:
    request = dict(BUILTINS[name].spec.resources)
    assert request in (LIGHT, SANDBOXED)
    assert _offers(config, request) == {"cpu", "gpu"}


def test_a_gpu_is_found_on_one_type_only(config: dict[str, Any]) -> None:
    assert _offers(config, {"CPU": 1, "GPU": 1}) == {"gpu"}


def test_the_requests_named_in_its_comment_are_those_of_the_tools() -> None:
    comment = (ROOT / "ray-cluster.yaml").read_text()
    assert '{"CPU": 0.25}' in comment
    assert '{"CPU": 1, "sandbox": 1}' in comment
    sandboxed = {name for name, tool in BUILTINS.items() if dict(tool.spec.resources) == SANDBOXED}
    assert sandboxed == {"python.run", "shell.run"}
