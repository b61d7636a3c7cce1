"""Nothing is downloaded before its terms were told, and accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.local_model import chosen, consent
from rayloom.cluster.local_model.catalogue import CODER, SMALL, LocalModel
from rayloom.cluster.settings import Settings, SettingsError, load_settings


def settings(home: Path, **given: str) -> Settings:
    return load_settings(None, environ={"RAYLOOM_HOME": str(home)} | given)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: answer)


@pytest.mark.parametrize("model", [SMALL, CODER], ids=["small", "coder"])
def test_the_terms_are_told_first(model: LocalModel) -> None:
    told: list[str] = []
    consent.ask(model, accepted=True, tell=told.append)
    text = "\n".join(told)
    for fact in (model.title, model.licence, model.licence_text, model.source, "xllamacpp 2026.10.11549", " MB"):
        assert fact in text


def test_who_can_t_be_asked_is_told_how_to_accept() -> None:
    told: list[str] = []
    with pytest.raises(StartRefused, match="--accept-licence") as refused:
        consent.ask(SMALL, accepted=False, tell=told.append)
    assert "\n" not in str(refused.value)
    assert told, "the terms are told all the same"


def test_a_yes_is_enough_and_a_no_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch, True)
    consent.ask(SMALL, accepted=False, tell=lambda _: None)
    on_a_terminal(monkeypatch, False)
    with pytest.raises(StartRefused, match="nothing was downloaded"):
        consent.ask(SMALL, accepted=False, tell=lambda _: None)


def test_only_who_chooses_a_model_is_asked(tmp_path: Path) -> None:
    told: list[str] = []
    chosen.agree(settings(tmp_path), told.append)
    assert not told
    with pytest.raises(StartRefused):
        chosen.agree(settings(tmp_path, RAYLOOM_LOCAL_MODEL="small"), told.append)
    chosen.agree(settings(tmp_path, RAYLOOM_LOCAL_MODEL="small", RAYLOOM_LOCAL_MODEL_LICENCE="accept"), told.append)


def test_too_little_memory_is_said_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.cluster.local_model.memory.available_bytes", lambda: 1_000_000_000)
    with pytest.raises(StartRefused, match="takes 2400 MB of memory, and 1000 MB are free: "):
        chosen.agree(settings(tmp_path, RAYLOOM_LOCAL_MODEL="coder"), pytest.fail)
    assert chosen.check(settings(tmp_path, RAYLOOM_LOCAL_MODEL="coder")).level == "warn"


def test_it_and_an_endpoint_elsewhere_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(
            tmp_path, RAYLOOM_LOCAL_MODEL="small", RAYLOOM_LLM_BASE_URL="http://a.example/v1", RAYLOOM_LLM_MODEL="b"
        )
    (line,) = refused.value.lines
    assert "RAYLOOM_LOCAL_MODEL and RAYLOOM_LLM_BASE_URL both" in line


def test_doctor_says_what_a_start_would_do(tmp_path: Path) -> None:
    assert chosen.check(settings(tmp_path)).detail == "none is chosen"
    found = chosen.check(settings(tmp_path, RAYLOOM_LOCAL_MODEL="small"))
    assert (found.level, found.advice) == ("warn", "`rayloom up` asks for its licence, and downloads 272 MB")


def test_whoever_asks_a_model_is_pointed_at_it(tmp_path: Path) -> None:
    there = chosen.asked_by_all(settings(tmp_path, RAYLOOM_PORT="8111"), SMALL, settings(tmp_path).llm_api_key)
    (model,) = there.models.models
    assert model.base_url == "http://127.0.0.1:8111/local-model/v1"
    assert (model.model, model.context_tokens, model.first_text_s) == ("small", 4096, 900)
    # What waits for a slot of its server is not let through yet, and its time does not run.
    assert model.max_concurrent == SMALL.slots
    assert chosen.as_served(settings(tmp_path)) == settings(tmp_path), "nothing runs there"
