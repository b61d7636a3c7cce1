"""Models as values: picklable, told apart, and with no secret to be seen."""

from __future__ import annotations

import pickle

import pytest

from rayloom.dag.errors import Refused
from rayloom.dag.model import Role
from rayloom.tools.models.settings import ModelSettings, ModelsSettings


def model(name: str, *roles: Role) -> ModelSettings:
    return ModelSettings(name=name, base_url="http://host/v1", model=f"{name}-1", roles=roles)


def test_they_are_values() -> None:
    settings = ModelsSettings(models=(model("default"), model("big", "planner")))
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_role_finds_its_model() -> None:
    assert ModelsSettings(models=(model("a"), model("default"))).for_role("cheap").name == "default"
    assert ModelsSettings(models=(model("a"), model("b", "cheap"))).for_role("cheap").name == "b"
    assert ModelsSettings(models=(model("a"), model("b", "cheap"))).for_role("coder").name == "a"
    with pytest.raises(Refused, match="RAYLOOM_LLM_BASE_URL"):
        ModelsSettings().for_role("cheap")


def test_the_longest_answer_leaves_room_for_a_question() -> None:
    assert model("a").view.answer_tokens == 4_096
    small = ModelSettings(base_url="http://host/v1", model="m", context_tokens=2_048)
    assert small.view.answer_tokens == 1_024


def test_it_is_shown_by_id_and_host() -> None:
    assert model("a").shown == "a-1 at host"
