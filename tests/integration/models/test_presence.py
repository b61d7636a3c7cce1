"""Whether models answer, as `rayloom doctor` and `rayloom status` tell it: a look that costs nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from rayloom.cluster import checks
from rayloom.cluster.instance import read_status
from rayloom.cluster.settings import Settings, load_settings
from rayloom.tools.models.presence import absence
from rayloom.tools.models.settings import ModelSettings
from tests.integration.models.conftest import Serve


def settings(tmp_path: Path, url: str, model: str) -> Settings:
    given = {"RAYLOOM_LLM_BASE_URL": url, "RAYLOOM_LLM_MODEL": model, "RAYLOOM_URL": "http://127.0.0.1:1"}
    return load_settings(environ={"RAYLOOM_HOME": str(tmp_path), **given})


def test_none_is_no_fault(tmp_path: Path) -> None:
    assert checks.models(load_settings(environ={"RAYLOOM_HOME": str(tmp_path)})).level == "ok"


def test_one_that_answers(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve()
    chosen = settings(tmp_path, endpoint.url, "scripted")
    assert checks.models(chosen).level == "ok"
    assert read_status(chosen)["models"] == {
        "state": "ok",
        "detail": f"default: scripted at {endpoint.url.split('/')[2]}",
    }
    assert endpoint.looks == ["/v1/models"] * 2
    assert endpoint.asked == []


def test_one_that_is_not_there(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve()
    found = checks.models(settings(tmp_path, endpoint.url, "other"))
    assert (found.level, "there is no such model, but scripted" in found.detail) == ("warn", True)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        found = checks.models(settings(tmp_path, f"http://127.0.0.1:{held.getsockname()[1]}/v1", "m"))
    assert (found.level, "does not answer" in found.detail) == ("warn", True)


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "refuses our key"), (503, "answers HTTP 503"), (404, None)],
    ids=["key", "down", "no-list"],
)
async def test_what_its_list_says(serve: Serve, status: int, said: str | None) -> None:
    endpoint = serve()
    endpoint.look_status = status
    found = await absence(ModelSettings(base_url=endpoint.url, model="m", api_key=SecretStr("geheim")))
    assert found is None if said is None else said in (found or "")
