"""Where the sets of packages of a host are kept: each made once, never changed, held by a lock while it is used.

For each set there is its folder, what it holds (``.json``), its lock, and while it is made a half-made folder
(``.new``). A lock is the kernel's: it ends with whoever has it, however that one ends, and an installer inherits it, so
that nobody meets a folder that somebody still writes to.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from rayloom.dag.errors import Refused, Transient

KEPT_S: Final = 3_600.0
"""A set that was used within so long is not removed: a container that waits may show it to the next run."""
SETS_OF_FULL_SIZE: Final = 8
"""All sets together take at most so many times what one may take."""
LOOK_S: Final = 0.05
PAGE_BYTES: Final = 4_096
_LOCK: Final = re.compile(r"([0-9a-f]{32})\.lock")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSet:
    """A set that is there, as long as ``lock`` is held. ``packages``: what it holds, as ``name==1.0 sha256:…`` each."""

    folder: Path
    packages: tuple[str, ...]
    lock: int

    def let_go(self) -> None:
        """It is no longer used here. Called once."""
        os.close(self.lock)


class Stopped(Exception):
    """Nobody waits for it any more."""


Maker = Callable[[Path, int], tuple[Path, list[str]]]
"""Fills a new folder; gives the folder inside it that is the set, and what that holds. It keeps the lock, given as a
descriptor, as long as anything of it runs."""


class PackageStore:
    """The store of this user on this host."""

    def __init__(self, *, set_max_bytes: int) -> None:
        self._folder = store_folder()
        self._set_max_bytes = set_max_bytes

    def held(self, key: str, make: Maker, *, within_s: float, stop: threading.Event) -> PackageSet:
        """The set of this key, which is made if there is none. Blocks.

        Raises Stopped, Transient (``PACKAGES_FAILED``), and what ``make`` raises.
        """
        place, until = self._folder / key, time.monotonic() + within_s
        while not stop.is_set():
            if time.monotonic() > until:
                raise Transient("PACKAGES_FAILED", f"another run still makes the same packages after {within_s:g} s")
            is_there = _packages(place) is not None
            lock = _locked(self._folder, key, fcntl.LOCK_SH if is_there else fcntl.LOCK_EX)
            if lock is None:
                stop.wait(LOOK_S)
                continue
            try:
                if _packages(place) is None:
                    if is_there:
                        # It was removed before it was locked, and who makes it wants the lock alone.
                        raise BlockingIOError
                    self._make(key, make, lock)
                # Nobody removes what was used just now, so that nothing can come between this and the shared lock.
                os.utime(lock)
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                packages = _packages(place)
                if packages is None:
                    raise Transient("PACKAGES_FAILED", f"{place} was changed by somebody else")
                return PackageSet(folder=place, packages=packages, lock=lock)
            except BlockingIOError:
                os.close(lock)
            except BaseException:
                os.close(lock)
                raise
        raise Stopped

    def _make(self, key: str, make: Maker, lock: int) -> None:
        self._make_room()
        place = self._folder / key
        new = place.with_suffix(".new")
        # What a killed maker has left: the lock is ours, so it is gone.
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        try:
            # One whose contents nobody can tell any more is made anew.
            with suppress(FileNotFoundError):
                place.rename(new / "damaged")
            made, told = make(new, lock)
            about = {"packages": told, "size_bytes": size_of(made)}
            (new / "about").write_bytes(orjson.dumps(about))
            (new / "about").rename(place.with_suffix(".json"))
            made.rename(place)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _make_room(self) -> None:
        """Remove sets that were not used for long, while there would not be room for one more of full size."""
        room = (SETS_OF_FULL_SIZE - 1) * self._set_max_bytes
        sets = sorted(_kept(self._folder), key=lambda each: each[1])
        total = sum(size for _, _, size in sets)
        for key, used_at, size in sets:
            if total <= room:
                return
            if time.time() - used_at > KEPT_S and _remove(self._folder, key):
                total -= size
        if total > room:
            raise Transient(
                "PACKAGES_FAILED", "there is no room for another set of packages now: all of them are in use"
            )


def store_folder() -> Path:
    """Where sets are kept: a folder that is ours, and that nobody else may write to. Raises Refused."""
    store = Path(tempfile.gettempdir(), f"rayloom-packages-{os.geteuid()}")
    store.mkdir(mode=0o755, exist_ok=True)
    status = store.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Refused("PACKAGES_REFUSED", f"{store} is not ours alone")
    return store


def tidy() -> int:
    """Remove what killed makers have left half-made, how many there were; and locks of sets that there are none of."""
    count = 0
    try:
        folder = store_folder()
    except (OSError, Refused):
        return 0
    for new in folder.glob("*.new"):
        lock = _locked(folder, new.stem, fcntl.LOCK_EX)
        if lock is not None:
            shutil.rmtree(new, ignore_errors=True)
            os.close(lock)
            count += 1
    for path in folder.glob("*.lock"):
        if _is_idle(path):
            lock = _locked(folder, path.stem, fcntl.LOCK_EX)
            if lock is not None:
                # Not if it was made meanwhile.
                if _is_idle(path):
                    path.unlink()
                os.close(lock)
    return count


def _is_idle(lock: Path) -> bool:
    """Whether a lock is that of no set, and nobody has wanted that for long."""
    with suppress(FileNotFoundError):
        is_old = time.time() - lock.stat().st_mtime > KEPT_S
        return is_old and not any(lock.with_suffix(suffix).exists() for suffix in ("", ".json", ".new"))
    return False


def size_of(folder: Path) -> int:
    """The bytes that what is below a folder takes, a page for each at least; what vanishes meanwhile is left out."""
    size = 0
    for place, folders, names in os.walk(folder):
        size += len(folders) * PAGE_BYTES
        for name in names:
            with suppress(OSError):
                size += max(os.lstat(os.path.join(place, name)).st_blocks * 512, PAGE_BYTES)
    return size


def _locked(folder: Path, key: str, mode: int) -> int | None:
    """A descriptor that holds the lock of a set, or None while somebody else does."""
    path = folder / f"{key}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
        # Whoever removed the set before us removed this file with it.
        if path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _packages(place: Path) -> tuple[str, ...] | None:
    """What a set holds; None where it is not there, or not whole."""
    if not place.is_dir():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        return tuple(map(str, orjson.loads(place.with_suffix(".json").read_bytes())["packages"]))
    return None


def _kept(folder: Path) -> Iterator[tuple[str, float, int]]:
    """Each set as (its key, when it was last used, its bytes)."""
    for path in folder.iterdir():
        if match := _LOCK.fullmatch(path.name):
            with suppress(OSError, ValueError, KeyError, TypeError):
                about = orjson.loads((folder / f"{match[1]}.json").read_bytes())
                yield match[1], path.stat().st_mtime, int(about["size_bytes"])


def _remove(folder: Path, key: str) -> bool:
    lock = _locked(folder, key, fcntl.LOCK_EX)
    if lock is None:
        return False
    try:
        # Not a half of it: a set is there under its name or not at all.
        gone = folder / f"{key}.new"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            (folder / key).rename(gone)
        (folder / f"{key}.json").unlink(missing_ok=True)
        shutil.rmtree(gone, ignore_errors=True)
        # Last: without it, whoever wants the set makes another lock, and writes where this one removes.
        (folder / f"{key}.lock").unlink(missing_ok=True)
    finally:
        os.close(lock)
    return True
