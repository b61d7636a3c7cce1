"""Where sandboxes elsewhere are: what may be set, and what E2B's own variables add to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from rayloom.cluster import checks
from rayloom.cluster.settings import Settings, SettingsError, load_settings
from rayloom.tools.settings import E2bSettings

CHOSEN = {"RAYLOOM_SANDBOX": "e2b"}
E2B = {
    "E2B_API_KEY": "geheim",
    "E2B_DOMAIN": "e2b.example",
    "E2B_API_URL": "http://api.example:3000",
    "E2B_SANDBOX_URL": "http://boxes.example:3002/",
}


def load(tmp_path: Path, **environ: str) -> Settings:
    return load_settings(environ={"RAYLOOM_HOME": str(tmp_path), **environ})


def test_all_can_be_set(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        **CHOSEN,
        RAYLOOM_E2B_API_KEY="geheim",
        RAYLOOM_E2B_DOMAIN="e2b.example",
        RAYLOOM_E2B_API_URL="https://api.example/",
        RAYLOOM_E2B_SANDBOX_URL="https://boxes.example",
        RAYLOOM_E2B_TEMPLATE="ours",
    )
    assert settings.tools.e2b == E2bSettings(
        api_key=SecretStr("geheim"), domain="e2b.example", api_url="https://api.example",
        sandbox_url="https://boxes.example", template="ours",
    )  # fmt: skip
    assert "geheim" not in f"{settings!r}{settings.tools!r}{settings.tools.model_dump_json()}"


def test_what_is_not_set_is_as_e2b_has_it(tmp_path: Path) -> None:
    found = load(tmp_path, **CHOSEN, **E2B).e2b
    assert (found.api_key, found.domain) == (SecretStr("geheim"), "e2b.example")
    assert (found.api_url, found.sandbox_url) == ("http://api.example:3000", "http://boxes.example:3002")
    ours = load(tmp_path, **CHOSEN, **E2B, RAYLOOM_E2B_API_KEY="ours").e2b
    assert (ours.api_key, ours.domain) == (SecretStr("ours"), "e2b.example")


def test_parts_of_two_places_never_mix(tmp_path: Path) -> None:
    found = load(tmp_path, **CHOSEN, **E2B, RAYLOOM_E2B_DOMAIN="own.example").e2b
    assert found == E2bSettings(api_key=SecretStr("geheim"), domain="own.example")


@pytest.mark.parametrize("chosen", ["auto", "docker", None])
def test_what_e2b_says_is_of_no_interest_unless_it_is_chosen(tmp_path: Path, chosen: str | None) -> None:
    given = {} if chosen is None else {"RAYLOOM_SANDBOX": chosen}
    assert load(tmp_path, **{**E2B, "E2B_API_URL": "no url"}, **given).e2b == E2bSettings()


def test_what_e2b_says_wrongly_is_told_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RAYLOOM_E2B_API_URL.* in the environment of E2B: must begin with http"):
        load(tmp_path, **CHOSEN, E2B_API_URL="api.example")
    with pytest.raises(SettingsError, match=r"RAYLOOM_E2B_DOMAIN"):
        load(tmp_path, **CHOSEN, RAYLOOM_E2B_DOMAIN="https://e2b.example/")


def test_a_check_without_a_key_says_what_to_set(tmp_path: Path) -> None:
    found = checks.sandbox(load(tmp_path, **CHOSEN))
    assert (found.level, found.name) == ("warn", "sandbox")
    assert "RAYLOOM_E2B_API_KEY" in found.detail
