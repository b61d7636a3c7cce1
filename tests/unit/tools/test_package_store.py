"""Sets of packages are made once, held while they are used, and removed when there is no more room."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox import package_store
from rayloom.tools.sandbox.package_store import PAGE_BYTES, SETS_OF_FULL_SIZE, PackageSet, PackageStore, Stopped


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return package_store.store_folder()


def filled(new: Path, _lock: int) -> tuple[Path, list[str]]:
    (new / "inside").mkdir()
    (new / "inside" / "x").write_bytes(bytes(PAGE_BYTES))
    return new / "inside", ["x==1 sha256:0"]


def held(key: int, make: package_store.Maker = filled, *, within_s: float = 10) -> PackageSet:
    return PackageStore(set_max_bytes=PAGE_BYTES).held(f"{key:032x}", make, within_s=within_s, stop=threading.Event())


def age(place: Path, key: int) -> None:
    """It was last used long ago."""
    long_ago = time.time() - 2 * package_store.KEPT_S
    os.utime(place / f"{key:032x}.lock", (long_ago, long_ago))


def test_a_set_is_made_once_however_many_want_it_at_once() -> None:
    made: list[Path] = []

    def slowly(new: Path, lock: int) -> tuple[Path, list[str]]:
        made.append(new)
        threading.Event().wait(0.1)
        return filled(new, lock)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: held(1, slowly), range(8)))
    assert len(made) == 1
    assert {(each.folder, each.packages) for each in found} == {(found[0].folder, ("x==1 sha256:0",))}
    for each in found:
        each.let_go()


def test_a_maker_that_fails_leaves_nothing_and_the_next_one_makes_it(place: Path) -> None:
    def fails(new: Path, _lock: int) -> tuple[Path, list[str]]:
        (new / "half").mkdir()
        raise Refused("PACKAGES_REFUSED", "no")

    with pytest.raises(Refused):
        held(1, fails)
    assert [each.suffix for each in place.iterdir()] == [".lock"]
    held(1).let_go()


def test_without_room_the_least_used_go_but_for_those_in_use(place: Path) -> None:
    in_use = held(0)
    for key in range(1, SETS_OF_FULL_SIZE):
        held(key).let_go()
    for key in (0, 2):
        age(place, key)
    held(100).let_go()
    names = {each.name for each in place.iterdir() if each.is_dir()}
    assert names == {f"{key:032x}" for key in (*range(SETS_OF_FULL_SIZE), 100) if key != 2}
    assert not list(place.glob(f"{2:032x}*"))
    # Nothing that may go now: the others were used just now, or still are.
    with pytest.raises(Transient, match="no room"):
        held(101)
    in_use.let_go()
    held(101).let_go()
    assert not in_use.folder.exists()


_DIES = """
import os, sys, tempfile, threading
tempfile.tempdir = sys.argv[1]
from rayloom.tools.sandbox.package_store import PackageStore
def make(new, lock):
    (new / "half").mkdir()
    print("up", flush=True)
    threading.Event().wait()
PackageStore(set_max_bytes=1).held("0" * 31 + "1", make, within_s=1, stop=threading.Event())
"""


def _killed_while_it_makes(tmp_path: Path, meanwhile: Callable[[], None]) -> None:
    with subprocess.Popen([sys.executable, "-c", _DIES, str(tmp_path)], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"up\n"
        meanwhile()
        maker.kill()


def test_what_a_killed_maker_left_is_removed_and_not_before(tmp_path: Path, place: Path) -> None:
    def not_yet() -> None:
        assert package_store.tidy() == 0
        with pytest.raises(Transient, match="still makes"):
            held(1, within_s=0.1)

    _killed_while_it_makes(tmp_path, not_yet)
    assert list(place.glob("*.new"))
    assert package_store.tidy() == 1
    assert not list(place.glob("*.new"))
    _killed_while_it_makes(tmp_path, lambda: None)
    held(1).let_go()
    assert not list(place.glob("*.new"))


@pytest.mark.parametrize("about", [None, b"", b"{", b"[]", b"{}", b'{"packages": 1}'])
def test_a_set_whose_contents_nobody_can_tell_is_made_anew(about: bytes | None, place: Path) -> None:
    old = held(1)
    old.let_go()
    (old.folder / "old").touch()
    told = old.folder.with_suffix(".json")
    told.unlink() if about is None else told.write_bytes(about)
    new = held(1)
    new.let_go()
    assert new == replace(old, lock=new.lock)
    assert [each.name for each in new.folder.iterdir()] == ["x"]
    assert not list(place.glob("*.new"))


def test_a_damaged_set_is_not_made_anew_while_somebody_has_it() -> None:
    in_use = held(1)
    in_use.folder.with_suffix(".json").unlink()
    with pytest.raises(Transient, match="still makes"):
        held(1, within_s=0.1)
    assert in_use.folder.is_dir()
    in_use.let_go()


def test_a_set_that_goes_before_it_is_locked_is_made_under_a_lock_of_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(1).let_go()
    locked, modes = package_store._locked, list[int]()

    def too_late(folder: Path, key: str, mode: int) -> int | None:
        if not modes:
            monkeypatch.setattr(package_store, "_locked", locked)
            assert package_store._remove(folder, key)
            monkeypatch.setattr(package_store, "_locked", too_late)
        modes.append(mode)
        return locked(folder, key, mode)

    monkeypatch.setattr(package_store, "_locked", too_late)
    held(1).let_go()
    assert modes == [fcntl.LOCK_SH, fcntl.LOCK_EX]
    assert (place / f"{1:032x}").is_dir()


def test_a_set_is_removed_before_its_lock_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = held(1)
    made.let_go()
    rmtree, locks = shutil.rmtree, list[bool]()

    def seen(path: Path, *, ignore_errors: bool) -> None:
        locks.append((place / f"{1:032x}.lock").exists())
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr("shutil.rmtree", seen)
    assert package_store._remove(place, f"{1:032x}")
    assert locks == [True, True]
    assert not list(place.iterdir())


def test_locks_of_no_set_go_and_no_others(place: Path) -> None:
    held(1).let_go()
    for key in (2, 3, 4):
        (place / f"{key:032x}.lock").touch()
    for key in (1, 2, 4):
        age(place, key)
    with (place / f"{4:032x}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert package_store.tidy() == 0
        assert {int(each.stem, 16) for each in place.glob("*.lock")} == {1, 3, 4}
    package_store.tidy()
    assert {int(each.stem, 16) for each in place.glob("*.lock")} == {1, 3}


def test_nobody_waits_who_was_told_to_stop() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        PackageStore(set_max_bytes=PAGE_BYTES).held(f"{1:032x}", filled, within_s=10, stop=stop)


def test_a_store_that_others_may_write_to_is_not_used(place: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(Refused, match="not ours alone"):
        package_store.store_folder()
    assert package_store.tidy() == 0
