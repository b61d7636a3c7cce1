"""``RAYLOOM_HOME``: one folder, one owner at a time, and the secrets that are made on first start.

The owner holds a lock of the operating system on ``lock``, so that a killed owner leaves nothing to clean up. What
``status`` and ``down`` need to know about the owner stands in ``run.json``.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import secrets
import stat
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

_FLOCK = "hhqqi4x"
_BEFORE_FIRST_START = frozenset(
    {".env", "rayloom.toml", "skills", "logs", "api_key", "secret_key", "ray_auth_token", "models", "lost+found"}
)

State = Literal["starting", "serving", "restarting Ray", "stopping"]

Secret = Literal[
    "api_key",
    "secret_key",
    "database_password",
    "worker_password",
    "redis_password",
    "local_model_key",
    "ray_auth_token",
]


class HomeError(Exception):
    """The folder can't be used; the message is one line that says what to do."""


class HomeTaken(HomeError):
    """Another process owns the folder; ``pid`` is its process, or None if it has not said so yet."""

    def __init__(self, path: Path, pid: int | None) -> None:
        who = f"by process {pid}" if pid else "by another process"
        super().__init__(
            f"{path} is in use {who}: stop that one with `rayloom down`, or set RAYLOOM_HOME to another folder"
        )
        self.pid = pid


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningInstance:
    """What the owner of a home tells about itself. Holds no secret."""

    pid: int
    started_at: str
    state: State
    url: str
    urls: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    """Where it was started, and whose ``.env`` and ``rayloom.toml`` it reads; empty where it did not say."""
    ray_address: str | None = None
    ray_auth: str = ""
    """The authentication of its own Ray: ``token`` or ``disabled``; empty on a given Ray."""
    services: dict[str, str] = field(default_factory=dict)
    """``database`` and ``redis``: ``embedded`` with the port, or ``external``."""


class Home:
    """The folder, and the names of what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.postgres = path / "postgres"
        self.redis = path / "redis"
        self.models = path / "models"
        self.run_file = path / "run.json"
        self._lock_file = path / "lock"
        self._lock: int | None = None

    def create(self) -> None:
        """Make the folder (0700) where it is missing. Raises HomeError when that can't be."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"{self.path} can't be made ({error.strerror}): set RAYLOOM_HOME to another folder"
            ) from None
        if self.path.stat().st_uid != os.geteuid():
            raise HomeError(f"{self.path} belongs to another user: set RAYLOOM_HOME to a folder of your own")
        if self.open_to_others() and self._is_ours():
            # Others may be let through, never to list or change: root's PostgreSQL runs as another user.
            self.path.chmod(stat.S_IMODE(self.path.stat().st_mode) & (0o711 if os.geteuid() == 0 else 0o700))

    def _is_ours(self) -> bool:
        """Not a folder with other things in it, such as /tmp, that somebody named by mistake or on purpose."""
        return self._lock_file.exists() or {entry.name for entry in self.path.iterdir()} <= _BEFORE_FIRST_START

    def open_to_others(self) -> bool:
        """Whether other users may list or change it. Passing through (0711) is harmless: every file in it is 0600."""
        return bool(self.path.stat().st_mode & 0o066)

    def acquire(self) -> None:
        """Become its owner until `release` or the end of this process. Raises HomeTaken, or HomeError."""
        self.create()
        try:
            # Not inherited: a service that outlives us by a second must not keep the lock.
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritable(self._lock_file, error) from None
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except OSError:
            os.close(lock)
            raise HomeTaken(self.path, self._holder()) from None
        try:
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(lock)
            raise unwritable(self._lock_file, error) from None
        self._lock = lock

    def release(self) -> None:
        """Stop being its owner; does nothing for who is not."""
        if self._lock is not None:
            # A file that can't be removed is seen as what a killed owner left.
            with suppress(OSError):
                self.run_file.unlink()
            os.close(self._lock)
            self._lock = None

    def was_killed(self) -> bool:
        """Whether the last owner had no time to release it. To be asked by the present one, before `write_run`."""
        return self.run_file.exists()

    def owner(self) -> int | None:
        """The process that owns the folder now, 0 if it has not said which, or None if nobody does."""
        try:
            lock = os.open(self._lock_file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # Asking takes no lock, so a `status` can't get into the way of an `up`.
            answer = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
        finally:
            os.close(lock)
        held = struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK
        return (self._holder() or 0) if held else None

    def is_held_by(self, pid: int) -> bool:
        """Whether this process has the lock's file open, as its owner has.

        Its number alone is only what the file says: of an owner before, or of another container that shares the folder,
        and here it may be anybody's. Raises PermissionError for a process that we may not look into.
        """
        lock = self._lock_file.stat()
        try:
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            return False
        for descriptor in descriptors:
            with suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), lock):
                    return True
        return False

    def _holder(self) -> int | None:
        try:
            return int(self._lock_file.read_text())
        except (OSError, ValueError):
            return None

    def write_run(self, instance: RunningInstance) -> None:
        """Tell `status` and `down` about this owner. Raises HomeError when that can't be written."""
        self._write(self.run_file, json.dumps(asdict(instance), indent=2) + "\n")

    def read_run(self) -> RunningInstance | None:
        """What the present owner told; None where nobody owns the folder, or has told nothing yet."""
        pid = self.owner()
        if pid is None:
            return None
        try:
            told = RunningInstance(**json.loads(self.run_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        # What a killed owner left behind says nothing about its successor.
        return told if told.pid == pid else None

    def secret(self, name: Secret) -> str:
        """A secret of this home, made (0600) when asked for first. Raises HomeError when it can't be kept."""
        existing = self.read_secret(name)
        return self.new_secret(name) if existing is None else existing

    def new_secret(self, name: Secret) -> str:
        """The same, made anew in the place of the one before."""
        value = _MAKERS[name]()
        self._write(self.path / name, value + "\n")
        return value

    def _write(self, path: Path, text: str) -> None:
        try:
            write_private(path, text)
        except OSError as error:
            raise unwritable(path, error) from None

    def read_secret(self, name: Secret) -> str | None:
        """A secret if it was made before. Raises HomeError when it is there and can't be read."""
        try:
            return (self.path / name).read_text().strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HomeError(f"{self.path / name} can't be read: {error.strerror}") from None


def unwritable(path: Path, error: OSError) -> HomeError:
    """What to tell of a file of a home that can't be written."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free some space there" if is_full else "make that possible"
    return HomeError(f"{path} can't be written ({error.strerror}): {advice}, or set RAYLOOM_HOME to another folder")


def _whole_file(kind: int) -> bytes:
    """A ``struct flock`` over the whole file, of the kind that belongs to the open file and not to the process."""
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def write_private(path: Path, text: str) -> None:
    """Write a file that only we may read, whole or not at all, also through a power cut."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _url_safe() -> str:
    return secrets.token_urlsafe(32)


_MAKERS: dict[Secret, Callable[[], str]] = {
    "api_key": lambda: f"rl_{secrets.token_urlsafe(32)}",
    # 32 bytes in URL-safe base64 with its padding, as Fernet wants a key.
    "secret_key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "database_password": _url_safe,
    "worker_password": _url_safe,
    "redis_password": _url_safe,
    "local_model_key": _url_safe,
    "ray_auth_token": _url_safe,
}
