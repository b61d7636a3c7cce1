"""The commands beside `rayloom up` have its settings, wherever they are called."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rayloom.cluster.cli.connection import address, api_key
from rayloom.cluster.home import Home, RunningInstance
from rayloom.cluster.instance import read_status, run_down, run_status
from rayloom.cluster.settings import SettingsError, load_settings
from rayloom.cluster.settings_of_up import IN_JOB, home_here, settings_here, settings_of_up
from rayloom.cluster.up import _Supervisor

URL = "postgresql+asyncpg://u:p@db/x"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `up`, with settings of its own."""
    for name in [name for name in os.environ if name.startswith("RAYLOOM_")]:
        monkeypatch.delenv(name)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    (here / ".env").write_text(f"RAYLOOM_API_KEY=key-of-here\nRAYLOOM_DATABASE_URL={URL}\nRAYLOOM_PORT=7001\n")
    monkeypatch.setenv("RAYLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def home(here: Path, tmp_path: Path) -> Iterator[Home]:
    """A home that somebody owns, who has told nothing yet."""
    home = Home(tmp_path / "home")
    home.acquire()
    yield home
    home.release()


def running(here: Path, *, folder: Path | None) -> RunningInstance:
    """What `up` tells, in the form of before where ``folder`` is None."""
    told = asdict(_Supervisor(load_settings(here), demo=False, as_json=False)._told("serving"))
    told["folder"] = str(folder or "")
    return RunningInstance(**told)


def test_up_tells_where_it_was_started(here: Path) -> None:
    assert _Supervisor(load_settings(here), demo=False, as_json=False)._told("starting").folder == str(here)


def test_where_nothing_runs_the_present_folder_says_nothing_of_keys(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYLOOM_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".rayloom").mkdir()
    (tmp_path / ".rayloom" / "api_key").write_text("key-of-admin\n")
    (here / ".env").write_text("RAYLOOM_URL=http://evil.example\nRAYLOOM_HOME=.x\nRAYLOOM_PROT=1\n")
    (here / ".x").mkdir()
    (here / ".x" / ".env").write_text("RAYLOOM_URL=http://evil.example\n")
    settings = settings_of_up()
    assert (address(settings), api_key(settings)) == ("http://127.0.0.1:8000", "key-of-admin")


def test_where_nothing_runs_the_present_folder_counts_as_for_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_here().database.primary_dsn() == URL
    monkeypatch.chdir(here.parent / "elsewhere")
    assert not settings_here().database.dsn_given


def test_the_folder_of_the_up_that_runs_counts_wherever_one_is(
    here: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_run(running(here, folder=here))
    elsewhere = here.parent / "elsewhere"
    (elsewhere / ".env").write_text("RAYLOOM_API_KEY=another\nRAYLOOM_PORT=7002\n")
    monkeypatch.chdir(elsewhere)
    settings = settings_of_up()
    assert (api_key(settings), address(settings)) == ("key-of-here", "http://127.0.0.1:7001")
    assert settings.database.primary_dsn() == URL
    assert read_status(settings)["folder"] == str(here)
    assert settings_here() == settings


def test_neither_a_fault_nor_a_home_of_the_present_folder_hides_the_up_that_runs(
    here: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_run(running(here, folder=here))
    elsewhere = here.parent / "elsewhere"
    (elsewhere / ".env").write_text("RAYLOOM_PROT=1\nRAYLOOM_HOME=.x\n")
    monkeypatch.chdir(elsewhere)
    assert api_key(settings_of_up()) == "key-of-here"
    assert home_here() == home.path, "the environment goes before the folder"
    assert settings_here().database.primary_dsn() == URL


def test_the_environment_goes_before_the_folder(here: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_run(running(here, folder=here))
    monkeypatch.setenv("RAYLOOM_API_KEY", "key-of-mine")
    assert api_key(settings_of_up()) == "key-of-mine"


def test_an_up_that_does_not_say_where_it_was_started_leaves_the_present_folder(here: Path, home: Home) -> None:
    home.write_run(running(here, folder=None))
    assert not settings_of_up().api_key.get_secret_value()
    assert settings_here().database.primary_dsn() == URL


@pytest.fixture
def elsewhere(here: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that names the home, as the environment does not; there is another one, in which nothing runs."""
    elsewhere = here.parent / "elsewhere"
    (elsewhere / "rayloom.toml").write_text('home = "../home"\n')
    monkeypatch.setenv("HOME", str(here.parent / "nobody"))
    monkeypatch.delenv("RAYLOOM_HOME")
    monkeypatch.chdir(elsewhere)
    return elsewhere


def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    run_status(as_json=True)
    return json.loads(capsys.readouterr().out)


def test_the_up_in_the_home_that_the_present_folder_names_is_shown(
    here: Path, home: Home, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write_run(running(here, folder=here))
    (elsewhere / ".env").write_text("RAYLOOM_PROT=1\n")
    assert home_here() == home.path
    assert settings_here().database.primary_dsn() == URL
    assert (shown(capsys)["home"], settings_of_up().home) == (str(home.path), here.parent / "nobody" / ".rayloom")


@pytest.mark.parametrize("link", [False, True])
def test_a_home_that_the_present_folder_names_is_not_read_where_no_up_of_ours_runs_in_it(
    here: Path, home: Home, elsewhere: Path, capsys: pytest.CaptureFixture[str], link: bool
) -> None:
    named = elsewhere / ".x"
    named.mkdir()
    (named / ".env").write_text("RAYLOOM_URL=http://127.0.0.1:9\n")
    if link:
        (named / "lock").symlink_to(home.path / "lock")
    (elsewhere / "rayloom.toml").write_text('home = ".x"\n')
    status = shown(capsys)
    assert (status["home"], status["url"]) == (str(here.parent / "nobody" / ".rayloom"), "http://127.0.0.1:8000")


def test_down_stops_nothing_but_what_runs_in_the_home_of_the_present_folder(
    here: Path, home: Home, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "rayloom.toml").write_text('home = ".x"\n')
    assert run_down() == 0
    assert f"no rayloom runs in {elsewhere / '.x'}" in capsys.readouterr().out


def test_the_folder_of_a_job_is_never_read(here: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_JOB, "{}")
    assert not settings_here().database.dsn_given
    elsewhere = here.parent / "elsewhere"
    (elsewhere / ".env").write_text("RAYLOOM_NONSENSE=1\n")
    monkeypatch.chdir(elsewhere)
    assert not settings_here().database.dsn_given
    home.write_run(running(here, folder=here))
    assert api_key(settings_of_up()) == "key-of-here"


def test_a_fault_of_the_folder_is_told(here: Path) -> None:
    (here / ".env").write_text("RAYLOOM_PROT=1\n")
    with pytest.raises(SettingsError, match="RAYLOOM_PORT"):
        settings_here()
