"""How long planning may take, and where its models come from."""

from __future__ import annotations

from pathlib import Path

from rayloom.actors.settings import EngineSettings
from rayloom.cluster.planning_models import planning_models
from rayloom.cluster.planning_time import ANSWER_MAX_S, PLAIN_ANSWER_S, answer_s
from rayloom.cluster.settings import Settings, load_settings
from rayloom.dag.model import Payer

LLM = {"RAYLOOM_LLM_BASE_URL": "http://127.0.0.1:1/v1", "RAYLOOM_LLM_MODEL": "m"}


def _settings(home: Path, **more: str) -> Settings:
    return load_settings(None, environ={"RAYLOOM_HOME": str(home), **more})


def test_a_model_may_take_minutes_and_an_outline_not(tmp_path: Path) -> None:
    without, with_ = _settings(tmp_path), _settings(tmp_path, **LLM)
    assert answer_s(without.models) == PLAIN_ANSWER_S
    assert answer_s(with_.models) == 3 * 600 + 60
    assert answer_s(_settings(tmp_path, **LLM, RAYLOOM_LLM_CALL_S="3600").models) == ANSWER_MAX_S
    assert answer_s(_settings(tmp_path, **LLM, RAYLOOM_LLM_CALL_S="20").models) == 120.0
    assert not without.serve.with_models
    assert with_.serve.with_models
    assert with_.serve.plan_timeout_s > without.serve.plan_timeout_s


async def test_models_are_those_of_the_settings_on_the_account_of_whoever_asks(tmp_path: Path) -> None:
    models = planning_models(_settings(tmp_path, **LLM).models, EngineSettings())(Payer(user_id="u"))
    assert models.view("planner").model == "m"
    assert models.count("one two") == 2
