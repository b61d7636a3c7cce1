"""RAYLOOM_HOME: one owner, secrets for nobody else, and what the owner tells."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from rayloom.cluster.home import Home, HomeError, HomeTaken, RunningInstance, write_private
from rayloom.cluster.logbook import open_logbook


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def instance(pid: int) -> RunningInstance:
    return RunningInstance(pid=pid, started_at="2026-01-01T00:00:00Z", state="serving", url="http://x")


def test_the_folder_is_for_its_owner_only(home: Home) -> None:
    home.create()
    assert mode(home.path) == 0o700
    assert mode(home.logs) == 0o700


def test_an_open_folder_is_closed(home: Home) -> None:
    home.path.mkdir(mode=0o755)
    home.path.chmod(0o755)
    home.create()
    assert not home.open_to_others()


def test_a_folder_with_other_things_in_it_keeps_its_mode(home: Home) -> None:
    home.path.mkdir()
    home.path.chmod(0o755)
    (home.path / "photos").mkdir()
    home.create()
    assert mode(home.path) == 0o755
    assert home.open_to_others()


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HomeError, match="can't be made"):
        Home(tmp_path / "file" / "home").acquire()


def test_there_is_one_owner_at_a_time(home: Home) -> None:
    assert home.owner() is None
    home.acquire()
    assert home.owner() == os.getpid()
    with pytest.raises(HomeTaken, match=f"in use by process {os.getpid()}") as caught:
        Home(home.path).acquire()
    assert caught.value.pid == os.getpid()
    home.release()
    assert home.owner() is None
    Home(home.path).acquire()


def test_looking_for_the_owner_never_takes_its_place(home: Home) -> None:
    home.acquire()
    assert [Home(home.path).owner() for _ in range(3)] == [os.getpid()] * 3
    home.release()
    # The lock file with the old number is still there.
    assert Home(home.path).owner() is None


def test_a_number_is_believed_only_of_who_has_the_lock_open(home: Home) -> None:
    home.acquire()
    assert home.is_held_by(os.getpid())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        assert not home.is_held_by(stranger.pid)
    assert not home.is_held_by(stranger.pid)
    home.release()
    assert not home.is_held_by(os.getpid())


def test_an_owner_that_is_killed_leaves_nothing_to_clean_up(home: Home) -> None:
    program = (
        "import pathlib, sys; from rayloom.cluster.home import Home, RunningInstance; import os\n"
        "home = Home(pathlib.Path(sys.argv[1])); home.acquire()\n"
        "home.write_run(RunningInstance(pid=os.getpid(), started_at='', state='serving', url='http://x'))\n"
        "print('owned', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(home.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"owned\n"
        told = home.read_run()
        assert told is not None
        assert told.pid == home.owner() == owner.pid
        owner.kill()
    assert home.owner() is None
    assert home.read_run() is None
    home.acquire()
    assert home.was_killed()
    home.release()
    home.acquire()
    assert not home.was_killed()


def test_the_lock_does_not_pass_to_children(home: Home) -> None:
    home.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        home.release()
        assert home.owner() is None
        assert child.poll() is None


def test_what_an_earlier_owner_told_is_not_believed(home: Home) -> None:
    home.acquire()
    home.write_run(instance(os.getpid() + 1))
    assert home.read_run() is None
    home.write_run(instance(os.getpid()))
    assert home.read_run() == instance(os.getpid())
    assert mode(home.run_file) == 0o600
    home.run_file.write_text('{"pid"')
    assert home.read_run() is None
    home.run_file.write_text(json.dumps({"pid": os.getpid(), "new_field": 1}))
    assert home.read_run() is None


def test_secrets_are_made_once_and_kept_to_oneself(home: Home) -> None:
    home.create()
    assert home.read_secret("api_key") is None
    key = home.secret("api_key")
    assert key.startswith("rl_")
    assert len(key) > 40
    assert home.secret("api_key") == home.read_secret("api_key") == key
    assert mode(home.path / "api_key") == 0o600
    assert home.secret("database_password") != home.secret("redis_password")


def test_the_secret_key_is_one_that_fernet_takes(home: Home) -> None:
    from cryptography.fernet import Fernet

    home.create()
    cipher = Fernet(home.secret("secret_key"))
    assert cipher.decrypt(cipher.encrypt(b"x")) == b"x"


FULL = r"can't be written \(No space left on device\): free some space there, or set RAYLOOM_HOME to another folder$"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_told_with_its_place_and_what_to_do(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", _full)
        with pytest.raises(HomeError, match=f"^{home.path}/lock {FULL}"):
            home.acquire()
    assert home.owner() is None
    home.acquire()
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(HomeError, match=f"^{home.path}/run.json {FULL}"):
        home.write_run(instance(1))
    with pytest.raises(HomeError, match=f"^{home.path}/api_key {FULL}"):
        home.secret("api_key")


def test_a_logbook_that_can_not_be_begun_is_told_like_that(home: Home) -> None:
    with pytest.raises(HomeError, match=rf"^{home.logs}/up.log can't be written \(No such file.*make that possible"):
        open_logbook(home.logs)


def test_a_file_is_written_whole_or_not_at_all(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.create()
    write_private(home.path / "file", "old")

    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(OSError, match="No space"):
        write_private(home.path / "file", "new")
    assert (home.path / "file").read_text() == "old"
    assert {entry.name for entry in home.path.iterdir()} == {"file", "logs"}
