"""The checks before a start: each says in one line what to do."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from rayloom.cluster import checks
from rayloom.cluster.settings import Settings, load_settings


def settings(home: Path, **environ: str) -> Settings:
    # Whatever runs on this machine beside the tests may have the usual one.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        dashboard = str(probe.getsockname()[1])
    return load_settings(environ={"RAYLOOM_HOME": str(home), "RAYLOOM_RAY_DASHBOARD_PORT": dashboard, **environ})


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
    monkeypatch.setattr(sys, "version_info", (3, 13, 1, "final", 0))
    found = checks.python_version()
    assert found.level == "fail"
    assert "3.13.1" in found.detail
    assert "3.11 or 3.12" in found.advice
