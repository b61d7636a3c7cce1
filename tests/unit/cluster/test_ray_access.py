"""The token and the folder of a Ray that rayloom starts, and what `rayloom env` prints for shells."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from rayloom.cluster import checks, ray_access
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.cli.program import run
from rayloom.cluster.home import Home, RunningInstance
from rayloom.cluster.settings import Settings, SettingsError, load_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    folder = tmp_path / "a home's $(own) folder"
    folder.mkdir()
    return Home(folder)


def settings(home: Home, **environ: str) -> Settings:
    return load_settings(None, environ={"RAYLOOM_HOME": str(home.path), **environ})


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_own_ray_asks_for_a_token_that_only_its_user_can_read(home: Home) -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "another", "RAY_ADDRESS": "http://elsewhere:8265"}
    ray_access.set_authentication(settings(home), home)
    file = home.path / "ray_auth_token"
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]) == ("token", str(file))
    assert not {"RAY_AUTH_TOKEN", "RAY_ADDRESS"} & set(os.environ)
    assert _mode(file) == 0o600
    token = file.read_text().strip()
    assert len(token) >= 32
    file.chmod(0o644)
    ray_access.set_authentication(settings(home), home)
    assert (file.read_text().strip(), _mode(file)) == (token, 0o600)


def test_disabled_authentication_warns_and_leaves_no_token_in_the_environment(home: Home) -> None:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/elsewhere"}
    chosen = settings(home, RAYLOOM_RAY_AUTH="disabled")
    ray_access.set_authentication(chosen, home)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert not list(home.path.iterdir())
    assert any("RAYLOOM_RAY_AUTH=disabled lets every user" in line for line in checks.warnings(chosen))
    assert not any("RAYLOOM_RAY_AUTH" in line for line in checks.warnings(settings(home)))


def test_given_ray_keeps_the_users_variables(home: Home) -> None:
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "theirs", "RAY_AUTH_TOKEN_PATH": "/theirs"}
    os.environ |= given
    ray_access.set_authentication(settings(home, RAYLOOM_RAY_ADDRESS="head:6379"), home)
    assert {name: os.environ[name] for name in given} == given
    assert not list(home.path.iterdir())


def test_unknown_authentication_is_refused(home: Home) -> None:
    with pytest.raises(SettingsError, match="RAYLOOM_RAY_AUTH"):
        settings(home, RAYLOOM_RAY_AUTH="none")


def test_sessions_of_ray_lie_in_a_folder_that_only_its_user_can_enter(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("RAY_TMPDIR", str(shared))
    closed = shared / f"rayloom-{os.geteuid()}"
    assert ray_access.temporary_folder() == closed / "ray"
    assert _mode(closed) == 0o700
    closed.chmod(0o777)
    assert ray_access.temporary_folder() == closed / "ray"
    assert _mode(closed) == 0o700
    # A folder that is closed already serves as it is.
    monkeypatch.setenv("RAY_TMPDIR", str(closed))
    assert ray_access.temporary_folder() == closed / "ray"


def test_folder_for_sessions_of_ray_that_another_user_put_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"rayloom-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartRefused, match="belongs to another user: remove it, or set RAY_TMPDIR"):
        ray_access.temporary_folder()


def test_sockets_of_ray_have_paths_that_the_kernel_takes(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", f"/tmp/{'x' * 80}")
    with pytest.raises(StartRefused, match="can't be made for Ray's files"):
        ray_access.temporary_folder()
    long = home.path / ("x" * 60)
    long.mkdir(mode=0o755)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert ray_access.temporary_folder() == Path(f"/tmp/rayloom-{os.geteuid()}/ray")


def test_env_prints_what_a_shell_can_evaluate(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLOOM_HOME", str(home.path))
    monkeypatch.setenv("RAYLOOM_RAY_DASHBOARD_PORT", "8777")
    assert run(["env"]) == 0
    said = capsys.readouterr()
    assert f"no rayloom runs in {home.path}" in said.err
    names = ("RAYLOOM_HOME", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    ask = "; ".join(f'printf "%s\\n" "${{{name}-unset}}"' for name in names)
    for shell in ("sh", "bash"):
        told = subprocess.run(
            [shell, "-c", f"eval {shlex.quote(said.out)}; {ask}"],
            env={"PATH": os.environ["PATH"], "RAY_AUTH_TOKEN": "another"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout.splitlines() == [
            str(home.path), "http://127.0.0.1:8777", "token", str(home.path / "ray_auth_token"), "unset"
        ]  # fmt: skip


def test_env_tells_of_the_running_instance_and_never_the_token(home: Home) -> None:
    token = home.secret("ray_auth_token")
    running = RunningInstance(
        pid=1, started_at="", state="serving", url="http://127.0.0.1:9", ray_auth="token",
        urls={"ray": "http://127.0.0.1:7"},
    )  # fmt: skip
    found = ray_access.shell_variables(settings(home, RAYLOOM_RAY_AUTH="disabled"), running)
    assert (found["RAYLOOM_URL"], found["RAY_ADDRESS"], found["RAY_AUTH_MODE"]) == (
        "http://127.0.0.1:9", "http://127.0.0.1:7", "token"
    )  # fmt: skip
    assert token not in str(found)
    guest = ray_access.shell_variables(settings(home, RAYLOOM_RAY_ADDRESS="head:6379"), running)
    assert guest == {
        "RAYLOOM_HOME": str(home.path), "RAYLOOM_URL": "http://127.0.0.1:9", "RAY_ADDRESS": "http://127.0.0.1:7"
    }  # fmt: skip
