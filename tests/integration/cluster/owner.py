"""An owner of a home in a process of its own (``owning.py``), that a test can look at, stop and kill."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

# Also under another interpreter than that of the virtual environment, for a user who may not enter its folder.
SITE_PACKAGES = next(entry for entry in sys.path if entry.endswith("site-packages"))
PROGRAM = Path(__file__).with_name("owning.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who owns a home in a test, and the Python that this user can run."""

    name: str
    uid: int
    gid: int
    python: str

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """A program in Python as this user."""
        drop = os.geteuid() != self.uid
        return subprocess.Popen(
            [self.python, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
            user=self.uid if drop else None,
            group=self.gid if drop else None,
            extra_groups=[] if drop else None,
        )


def me() -> User:
    """The user who runs the tests."""
    return User(name="me", uid=os.geteuid(), gid=os.getegid(), python=sys.executable)


def nobody() -> User:
    """An ordinary user, for tests that run as root; skips where that can't be."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    entry = pwd.getpwnam("nobody")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    probe = f"import site; site.addsitedir({SITE_PACKAGES!r}); import rayloom.cluster.home, asyncpg, pydantic_core"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        user = User(name="nobody", uid=entry.pw_uid, gid=entry.pw_gid, python=python)
        try:
            process = user.popen("-c", probe)
        except OSError:
            continue
        process.communicate()
        if process.returncode == 0:
            return user
    return pytest.skip("nobody may enter neither this virtual environment nor another Python of its version")


class Owner:
    """A running owner. Leaving the context stops it."""

    def __init__(self, user: User, home: Path, *, without: Sequence[str] = ()) -> None:
        """``without``: modules of wheels that it shall not find."""
        self.home = home
        self.process = user.popen(str(PROGRAM), SITE_PACKAGES, str(home), *without)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            _, errors = self.process.communicate()
            raise AssertionError(f"the owner did not start: {errors}")
        told = json.loads(said)
        self.database: str = told["database"]
        self.redis: str = told["redis"]
        self.news: list[str] = told["news"]
        self.sockets = Path(told["sockets"])

    def __enter__(self) -> Owner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it cleanly."""
        if self.process.returncode is None:
            _, errors = self.process.communicate(timeout=120)
            assert self.process.returncode in (0, -signal.SIGKILL), errors

    def kill(self) -> None:
        """As a person with `kill -9` does."""
        self.process.kill()
        self.process.communicate()

    @property
    def postmaster(self) -> int:
        """The process of PostgreSQL."""
        return int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
