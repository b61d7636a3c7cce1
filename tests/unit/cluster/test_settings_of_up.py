"""The commands beside `rayloom up` have its settings, wherever they are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from rayloom.cluster.cli.connection import address, api_key
from rayloom.cluster.home import Home, RunningInstance
from rayloom.cluster.instance import read_status
from rayloom.cluster.settings import SettingsError, load_settings
from rayloom.cluster.settings_of_up import IN_JOB, settings_of_up
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


def test_where_nothing_runs_the_present_folder_counts_as_for_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_key(settings_of_up()) == "key-of-here"
    assert settings_of_up().database.primary_dsn() == URL
    assert settings_of_up(database_url="postgresql://other/x").database.primary_dsn().endswith("//other/x")
    monkeypatch.chdir(here.parent / "elsewhere")
    assert not settings_of_up().database.dsn_given


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


def test_the_environment_goes_before_the_folder(here: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_run(running(here, folder=here))
    monkeypatch.setenv("RAYLOOM_API_KEY", "key-of-mine")
    assert api_key(settings_of_up()) == "key-of-mine"


def test_an_up_that_does_not_say_where_it_was_started_leaves_the_present_folder(here: Path, home: Home) -> None:
    home.write_run(running(here, folder=None))
    assert api_key(settings_of_up()) == "key-of-here"


def test_the_home_that_the_present_folder_names_is_looked_into(
    here: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_run(running(here, folder=here))
    monkeypatch.delenv("RAYLOOM_HOME")
    elsewhere = here.parent / "elsewhere"
    (elsewhere / "rayloom.toml").write_text('home = "../home"\n')
    monkeypatch.chdir(elsewhere)
    assert settings_of_up().home == home.path
    assert api_key(settings_of_up()) == "key-of-here"


def test_the_folder_of_a_job_is_never_read(here: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_JOB, "{}")
    assert not settings_of_up().database.dsn_given
    elsewhere = here.parent / "elsewhere"
    (elsewhere / ".env").write_text("RAYLOOM_NONSENSE=1\n")
    monkeypatch.chdir(elsewhere)
    home.write_run(running(here, folder=here))
    assert api_key(settings_of_up()) == "key-of-here"


def test_a_fault_of_the_folder_is_told(here: Path) -> None:
    (here / ".env").write_text("RAYLOOM_PROT=1\n")
    with pytest.raises(SettingsError, match="RAYLOOM_PORT"):
        settings_of_up()
