"""The checks before a start: each says in one line what to do."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from rayloom.cluster import checks
from rayloom.cluster.settings import Settings, load_settings


def settings(home: Path, **environ: str) -> Settings:
    # Whatever runs on this machine beside the tests may have the usual ones.
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, dashboard = str(one.getsockname()[1]), str(other.getsockname()[1])
    usual = {"RAYLOOM_HOME": str(home), "RAYLOOM_PORT": port, "RAYLOOM_RAY_DASHBOARD_PORT": dashboard}
    return load_settings(environ={**usual, **environ})


def test_a_taken_port_is_told_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(checks.StartRefused, match=f"port {number} on 127.0.0.1 is taken: stop .* RAYLOOM_PORT"):
            checks.refuse_to_start(settings(tmp_path, RAYLOOM_PORT=str(number)))
    checks.refuse_to_start(settings(tmp_path, RAYLOOM_PORT=str(number)))


def test_a_port_that_is_only_closing_down_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client:
            accepted, _ = server.accept()
            accepted.close()  # the server's side closes first, and lingers
            assert client.recv(1) == b""
    assert checks.port(settings(tmp_path, RAYLOOM_PORT=str(number))).level == "ok"


def test_a_host_that_is_not_ours(tmp_path: Path) -> None:
    found = checks.port(settings(tmp_path, RAYLOOM_HOST="203.0.113.7"))
    assert found.level == "fail"
    assert "RAYLOOM_HOST" in found.advice


@pytest.mark.parametrize("key", ["short", "1234567", "with space", "schlüssel-lang", "x" * 513])
def test_a_key_that_can_not_serve_is_refused_with_what_to_do(tmp_path: Path, key: str) -> None:
    with pytest.raises(checks.StartRefused, match=r"RAYLOOM_API_KEY .*: choose 32 random characters") as caught:
        checks.refuse_to_start(settings(tmp_path, RAYLOOM_API_KEY=key))
    assert key not in str(caught.value)
    (tmp_path / "api_key").write_text(f"{key}\n")
    with pytest.raises(checks.StartRefused, match=re.escape(str(tmp_path / "api_key"))):
        checks.refuse_to_start(settings(tmp_path))


def test_a_short_key_is_taken_with_a_warning(tmp_path: Path) -> None:
    chosen = settings(tmp_path, RAYLOOM_API_KEY="12345678")
    checks.refuse_to_start(chosen)
    [line] = checks.warnings(chosen)
    assert "RAYLOOM_API_KEY has only 8 characters" in line
    assert "12345678" not in line
    assert checks.warnings(settings(tmp_path, RAYLOOM_API_KEY="x" * 32)) == []
    assert checks.warnings(settings(tmp_path)) == []


def test_faults_are_never_injected_unsaid(tmp_path: Path) -> None:
    [line] = checks.warnings(settings(tmp_path, RAYLOOM_FAULTS="7:0.02"))
    assert "RAYLOOM_FAULTS=7:0.02 breaks connections" in line


def test_a_given_ray_cluster_has_ports_of_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        assert checks.port(settings(tmp_path, RAYLOOM_PORT=number, RAYLOOM_RAY_ADDRESS="ray:6379")).level == "ok"


def test_a_taken_dashboard_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        found = checks.dashboard_port(settings(tmp_path, RAYLOOM_RAY_DASHBOARD_PORT=number))
        assert (found.level, number in found.detail) == ("fail", True)
        assert "RAYLOOM_RAY_DASHBOARD_PORT" in found.advice
        guest = settings(tmp_path, RAYLOOM_RAY_DASHBOARD_PORT=number, RAYLOOM_RAY_ADDRESS="ray:6379")
        assert checks.dashboard_port(guest).level == "ok"
    assert checks.dashboard_port(settings(tmp_path, RAYLOOM_RAY_DASHBOARD_PORT=number)).level == "ok"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: full)
    with pytest.raises(checks.StartRefused, match=r"only 0\.0 GiB free .*: free at least 1 GiB"):
        checks.refuse_to_start(settings(tmp_path))


def test_a_home_that_is_yet_to_be_made_is_measured_where_it_will_be(tmp_path: Path) -> None:
    assert checks.disk_space(tmp_path / "not" / "yet").level == "ok"


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 14, 1, "final", 0))
    found = checks.python_version()
    assert found.level == "fail"
    assert "3.14.1" in found.detail
    assert "3.11, 3.12 or 3.13" in found.advice
