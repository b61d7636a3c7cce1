"""Models: what may be set, in which spellings, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayloom.cluster.settings import Settings, SettingsError, load_settings
from rayloom.tools.models.settings import ModelSettings

HERE = {"RAYLOOM_LLM_BASE_URL": "http://127.0.0.1:11434/v1/", "RAYLOOM_LLM_MODEL": "qwen3"}
BIG: dict[str, Any] = {
    "base_url": "https://api.example/v1",
    "api_key": "geheim",
    "model": "big-1",
    "roles": ["planner"],
}


def load(tmp_path: Path, **environ: str) -> Settings:
    return load_settings(environ={"RAYLOOM_HOME": str(tmp_path), **environ})


def refused(tmp_path: Path, **environ: str) -> str:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, **environ)
    [line] = error.value.lines
    assert "geheim" not in line
    return line


def test_there_is_none_by_default(tmp_path: Path) -> None:
    assert not load(tmp_path).models.is_configured


def test_one_is_set_by_variables(tmp_path: Path) -> None:
    models = load(tmp_path, **HERE).models
    assert models.models == (ModelSettings(base_url="http://127.0.0.1:11434/v1", model="qwen3"),)
    assert models.for_role("coder").name == "default"


def test_all_of_it_can_be_set(tmp_path: Path) -> None:
    given = {
        "API_KEY": "geheim", "CONTEXT_TOKENS": "8192", "ANSWER_TOKENS": "1024", "PRICE_IN": "0.5", "PRICE_OUT": "1.5",
        "FIRST_TEXT_S": "300", "SILENCE_S": "30", "CALL_S": "900", "STRUCTURED": "object", "SEED": "7",
        "TOKENS_PER_MIN": "100000", "REQUESTS_PER_MIN": "60", "MAX_CONCURRENT": "4",
    }  # fmt: skip
    [model] = load(tmp_path, **HERE, **{f"RAYLOOM_LLM_{name}": value for name, value in given.items()}).models.models
    said = model.model_dump(exclude={"name", "base_url", "model", "roles", "answer_max_bytes", "api_key"})
    assert model.api_key.get_secret_value() == "geheim"
    assert said == {name.lower(): json.loads(value) if name != "STRUCTURED" else value for name, value in given.items()
                    if name != "API_KEY"}  # fmt: skip


def test_others_are_set_by_name(tmp_path: Path) -> None:
    small = {"model": "small-1", "roles": ["cheap"], "price_in": 0.1}
    named = json.dumps({"big": BIG, "small": small})
    models = load(tmp_path, **HERE, RAYLOOM_LLM_API_KEY="key", RAYLOOM_LLM_MODELS=named).models
    assert [each.name for each in models.models] == ["default", "big", "small"]
    assert models.for_role("planner").model == "big-1"
    assert models.for_role("reasoner").model == "qwen3"
    # What names no endpoint is at that of the default model, with its key.
    cheap = models.for_role("cheap")
    assert (cheap.model, cheap.base_url, cheap.api_key.get_secret_value()) == (
        "small-1",
        "http://127.0.0.1:11434/v1",
        "key",
    )


def test_a_key_never_goes_to_another_endpoint(tmp_path: Path) -> None:
    named = json.dumps({"other": {"base_url": "https://other.example/v1", "model": "m"}})
    models = load(tmp_path, **HERE, RAYLOOM_LLM_API_KEY="key", RAYLOOM_LLM_MODELS=named).models
    assert models.models[1].api_key.get_secret_value() == ""


def test_they_may_be_tables_of_toml(tmp_path: Path) -> None:
    text = '[llm_models.big]\nbase_url = "https://api.example/v1"\nmodel = "big-1"\nroles = ["planner"]\n'
    (tmp_path / "rayloom.toml").write_text(text)
    assert load(tmp_path).models.for_role("planner").model == "big-1"


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BASE_URL": "http://h/v1"}, "RAYLOOM_LLM_MODEL is not: say which model"),
        ({"MODEL": "m"}, "RAYLOOM_LLM_MODEL is set and RAYLOOM_LLM_BASE_URL is not: say where"),
        ({"API_KEY": "geheim"}, "RAYLOOM_LLM_API_KEY is set and RAYLOOM_LLM_BASE_URL is not: say where"),
        ({"BASE_URL": "http://u:geheim@h/v1", "MODEL": "m"}, "must hold no password"),
        ({"MODELS": "[1]"}, "RAYLOOM_LLM_MODELS in the environment: must be a JSON object such as"),
        ({"MODELS": "{"}, "must be a JSON object such as"),
        ({"MODELS": '{"a": "geheim"}'}, "must be a JSON object such as"),
        ({"MODELS": '{"a": {"model": "m"}}'}, "RAYLOOM_LLM_MODELS: a.base_url is not set"),
        ({"MODELS": json.dumps({"a": {"base_url": "http://h"}})}, "RAYLOOM_LLM_MODELS: a.model: Field required"),
        ({"MODELS": json.dumps({"a": BIG | {"roles": ["boss"]}})}, "RAYLOOM_LLM_MODELS: a.roles.0: "),
        ({"MODELS": json.dumps({"a": BIG | {"cost": 1}})}, "Extra inputs are not permitted"),
        ({"MODELS": json.dumps({"a": BIG | {"context_tokens": 300, "answer_tokens": 300}})}, "less than its context"),
        ({"MODELS": json.dumps({"a b": BIG})}, "RAYLOOM_LLM_MODELS: a b.name: "),
        ({"MODELS": json.dumps({"a": BIG, "b": BIG})}, "the role planner is taken by both a and b"),
        ({"MODELS": json.dumps({"default": BIG}), "BASE_URL": "http://h", "MODEL": "m"}, "two models are named"),
        ({"BASE_URL": "http://h", "MODEL": "m", "ANSWER_TOKENS": "40000"}, "less than its context_tokens"),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_can_not_be_is_one_line(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    assert said in refused(tmp_path, **{f"RAYLOOM_LLM_{name}": value for name, value in environ.items()})
