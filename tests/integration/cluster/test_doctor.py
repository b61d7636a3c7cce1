"""`rayloom doctor` on this very machine, and on what is wrong with it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from rayloom.cluster.doctor import diagnose, run_doctor
from rayloom.cluster.home import Home

CHECKS = [
    "python", "packages", "ray", "memory", "shared-memory", "file-handles", "settings", "home", "disk", "api-key",
    "ray-auth", "local-model", "models", "instance", "port", "dashboard-port", "postgresql", "redis", "blob-store",
    "sandbox",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("RAYLOOM_")]:
        monkeypatch.delenv(name)
    for name in ("RAYLOOM_PORT", "RAYLOOM_RAY_DASHBOARD_PORT"):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            monkeypatch.setenv(name, str(probe.getsockname()[1]))
    monkeypatch.setenv("RAYLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def levels(folder: Path) -> dict[str, str]:
    return {check.name: check.level for check in diagnose(folder)}


def test_a_machine_that_can_run_rayloom(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert [check["name"] for check in told["checks"]] == CHECKS
    assert all(check["advice"] for check in told["checks"] if check["level"] != "ok")
    assert not home.exists(), "a look changes nothing"


def test_in_a_pipe_it_is_one_line_a_check(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == CHECKS


def test_a_taken_port_fails_unless_it_is_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("RAYLOOM_PORT", str(taken.getsockname()[1]))
        assert levels(home.parent)["port"] == "fail"
        assert run_doctor() == 1
        owner = Home(home)
        owner.acquire()
        assert levels(home.parent)["port"] == "ok"
        owner.release()


def test_wrong_settings_are_told_and_the_rest_is_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLOOM_PROT", "1")
    found = list(diagnose(home.parent))
    assert (found[-1].name, found[-1].level) == ("settings", "fail")
    assert "did you mean RAYLOOM_PORT?" in found[-1].detail


def test_an_open_home_is_a_warning(home: Path) -> None:
    home.mkdir()
    home.chmod(0o755)
    assert levels(home.parent)["home"] == "warn"


def test_servers_by_url_are_tried(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    monkeypatch.setenv("RAYLOOM_DATABASE_URL", f"postgresql://u:geheim@127.0.0.1:{number}/x")
    monkeypatch.setenv("RAYLOOM_REDIS_URL", f"redis://:geheim@127.0.0.1:{number}")
    found = {check.name: check for check in diagnose(home.parent)}
    assert (found["postgresql"].level, found["redis"].level) == ("fail", "fail")
    assert "geheim" not in str(found)


def test_a_replica_that_does_not_answer_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    monkeypatch.setenv("RAYLOOM_DATABASE_REPLICA_URL", f"postgresql://u:geheim@127.0.0.1:{number}/x")
    found = {check.name: check for check in diagnose(home.parent)}
    assert found["replica"].level == "warn"
    assert "the primary takes its reads" in found["replica"].advice
    assert "geheim" not in str(found)


def test_a_primary_is_no_replica(home: Path, monkeypatch: pytest.MonkeyPatch, server_url: str) -> None:
    monkeypatch.setenv("RAYLOOM_DATABASE_URL", server_url)
    monkeypatch.setenv("RAYLOOM_DATABASE_REPLICA_URL", server_url)
    found = {check.name: check for check in diagnose(home.parent)}
    assert (found["postgresql"].level, found["replica"].level) == ("ok", "warn")
    assert "no standby" in found["replica"].detail
