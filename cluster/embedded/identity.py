"""As whom the servers run. PostgreSQL refuses to be root; for everybody else the answer is: as yourself.

As root there are three ways, tried in this order: a user namespace that shows root as ``nobody``; drop to ``nobody``
where that user may enter the folders; drop to ``nobody`` with the one capability of entering closed folders. With the
second and third the data belong to ``nobody``, and so do other programs of the machine.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayloom.cluster.embedded import launch

Way = Literal["self", "nobody", "userns", "capability"]
_TRY_TIMEOUT_S = 30.0


class ServiceError(Exception):
    """A service can't be started; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A way to run a server. ``owner_uid`` must own its files, as seen from here."""

    way: Way
    uid: int
    gid: int
    owner_uid: int
    owner_gid: int

    def command(self, program: Sequence[str], *, death_signal: int = 0) -> list[str]:
        """The command line that runs ``program`` as this identity, told by ``death_signal`` when its parent dies."""
        mine = [self.way, str(self.uid), str(self.gid), str(os.getpid()), str(death_signal)]
        return [sys.executable, "-I", "-S", launch.__file__, *mine, *program]

    def can_run(self, program: Sequence[str], *, folder: Path) -> bool:
        """Whether ``program`` ends well as this identity, which must also be able to enter ``folder``."""
        return self._succeeds(["/bin/sh", "-c", 'cd "$0"', str(folder)]) and self._succeeds(program)

    def _succeeds(self, program: Sequence[str]) -> bool:
        try:
            done = subprocess.run(
                self.command(program),
                env=server_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TRY_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def own(self, path: Path) -> None:
        """Hand ``path`` and all below it to this identity, if it is not its own already."""
        if path.lstat().st_uid == self.owner_uid:
            return
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                os.lchown(os.path.join(folder, name), self.owner_uid, self.owner_gid)
            if folder != str(path):
                os.lchown(folder, self.owner_uid, self.owner_gid)
        # The top last: an interrupted walk is seen, and walked again.
        os.lchown(path, self.owner_uid, self.owner_gid)

    def own_folder(self, path: Path) -> None:
        """Make ``path`` a folder of this identity that is closed to all others."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        self.own(path)


def server_environment() -> dict[str, str]:
    """What a server finds in its environment: nothing of ours, and no locale of the user's."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def myself() -> Identity:
    """This very user."""
    uid, gid = os.geteuid(), os.getegid()
    return Identity(way="self", uid=uid, gid=gid, owner_uid=uid, owner_gid=gid)


def as_root(way: Way) -> Identity:
    """One of the ways open to root. Raises ServiceError where there is no user ``nobody``."""
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise ServiceError(
            "PostgreSQL can't run as root, and there is no user 'nobody': use an ordinary user"
        ) from None
    if way == "userns":
        return Identity(way=way, uid=nobody.pw_uid, gid=nobody.pw_gid, owner_uid=os.geteuid(), owner_gid=os.getegid())
    return Identity(way=way, uid=nobody.pw_uid, gid=nobody.pw_gid, owner_uid=nobody.pw_uid, owner_gid=nobody.pw_gid)


def choose(*, program: Sequence[str], folder: Path) -> Identity:
    """Who shall run ``program`` with its data below ``folder``. Raises ServiceError when root has no way at all."""
    if os.geteuid() != 0:
        return myself()
    ways: tuple[Way, ...] = ("userns", "nobody", "capability")
    for identity in map(as_root, ways):
        if identity.can_run(program, folder=folder):
            return identity
    raise ServiceError(
        "PostgreSQL can't run as root, and here root can't become another user: "
        "run rayloom as an ordinary user, or set RAYLOOM_DATABASE_URL to a server of your own"
    )
