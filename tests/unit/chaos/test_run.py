"""A chaos run that fails, by a violation or by itself, keeps the logs, and tells what was done to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from rayloom.serve.answers import Unreachable
from tests.chaos import run
from tests.chaos.case import Violation
from tests.chaos.kept import LOST, keep_logs
from tests.chaos.killer import Blow, Killer
from tests.chaos.record import ServerFault

OPTIONS = run.Options(minutes=0, seed=7, subtasks=1, workers=0, power_cord=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a rig, with logs in it; copies go beside it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = tmp_path / "rig"
    for name in ("home/logs/postgres.log", "home/api_key", "ray/session_1/logs/raylet.out", "up.log"):
        file = made / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (made / "ray/session_latest").symlink_to("session_1")
    return made


def copied(kept: Path) -> set[str]:
    """The files there, by their paths."""
    return {str(each.relative_to(kept)) for each in kept.rglob("*") if each.is_file()}


def test_logs_are_copied_and_keys_are_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rlch-logs-7").mkdir()
    (tmp_path / "rlch-logs-7" / "old.log").write_text("of an earlier run")
    kept = keep_logs(folder, 7)
    assert kept == tmp_path / "rlch-logs-7"
    assert copied(kept) == {"home/logs/postgres.log", "ray/session_1/logs/raylet.out", "up.log"}


def test_what_can_not_be_copied_is_named(folder: Path) -> None:
    os.mkfifo(folder / "home/logs/pipe")
    kept = keep_logs(folder, 7)
    assert "home/logs/postgres.log" in copied(kept)
    assert "pipe" in (kept / LOST).read_text()


class _Rig:
    has_nodes = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """There is nothing to end."""

    def start(self) -> None:
        """There is nothing to start."""


class _Driver:
    """One whose users can't be made, as ``fails`` says."""

    def __init__(self, fails: Exception | None) -> None:
        self._fails = fails
        self.faults = SimpleNamespace(seen=(ServerFault(method="GET", path="/x", detail="a fault"),))
        self.watch = SimpleNamespace(away_s=12.5)
        self.told: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """There is nothing to stop."""

    def begin(self) -> None:
        """Its time does not matter."""

    def make_users(self) -> None:
        if self._fails is not None:
            raise self._fails

    def tell(self, line: str) -> None:
        self.told.append(line)


Ran = Callable[[Exception | None, list[Violation]], tuple[int, str]]


@pytest.fixture
def ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """A run in which the driver fails, or the checker finds this: its exit code, and what it told."""

    def ran(fails: Exception | None, found: list[Violation]) -> tuple[int, str]:
        driver = _Driver(fails)

        def killer(*_arguments: object, **_more: object) -> Killer:
            made = Killer(_Rig(folder), 7, tell=driver.tell)  # type: ignore[arg-type]  # it is never started
            made.blows.append(Blow(at_s=1, at=2, what="SIGKILL", victim="postgres", pid=3))
            return made

        def drive(*_arguments: object) -> Any:
            return found

        monkeypatch.setattr(run, "Rig", lambda **_options: _Rig(folder))
        monkeypatch.setattr(run, "Driver", lambda *_arguments, **_options: driver)
        monkeypatch.setattr(run, "Killer", killer)
        monkeypatch.setattr(run, "_drive", drive)
        return run.run(OPTIONS), "\n".join(driver.told)

    return ran


def test_a_driver_that_fails_still_tells_the_seed_the_blows_and_where_the_logs_are(ran: Ran, tmp_path: Path) -> None:
    code, told = ran(Unreachable("nobody answers"), [])
    assert code == 1
    for words in ("seed 7", "Unreachable: nobody answers", "SIGKILL postgres 3", "a fault", "12.5 s"):
        assert words in told
    assert str(tmp_path / "rlch-logs-7") in told
    assert (tmp_path / "rlch-logs-7/up.log").exists()


def test_a_violation_keeps_the_logs_too(ran: Ran, tmp_path: Path) -> None:
    code, told = ran(None, [Violation(rule="any")])
    assert code == 1
    assert str(tmp_path / "rlch-logs-7") in told


def test_a_sound_run_keeps_nothing(ran: Ran, tmp_path: Path) -> None:
    assert ran(None, [])[0] == 0
    assert not (tmp_path / "rlch-logs-7").exists()


def test_what_ends_the_submission_is_raised_at_once() -> None:
    submitting: Future[None] = Future()
    submitting.set_exception(Unreachable("nobody answers"))
    with pytest.raises(Unreachable):
        run._wait_out(submitting, 3_600)
