"""Packages for a program, from a folder of wheels that whoever runs rayloom has filled.

Nothing is built, and nothing downloaded. Each set that is asked for is unpacked once on a host, by pip, which runs no
code of a wheel; the sandbox sees the result read-only.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.tools.sandbox.host import interpreter

INSIDE: Final = "/run/packages"
MAX_PACKAGES: Final = 64
INSTALL_S: Final = 300.0
ASK_S: Final = 30.0
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(\[[A-Za-z0-9._, -]{1,100}\])?"
    r"( ?(==|>=|<=|~=|!=|<|>) ?[A-Za-z0-9.*+!_-]{1,50}(, ?(==|>=|<=|~=|!=|<|>) ?[A-Za-z0-9.*+!_-]{1,50}){0,9})?"
)


async def unpacked(wanted: Sequence[str], wheels: Path) -> Path:
    """The folder that holds these packages and what they need; made once for each set.

    Raises UserError (``PACKAGES_INVALID``), Refused (``PACKAGES_REFUSED``: the folder can't give them) and Transient
    (``PACKAGES_FAILED``).
    """
    if len(wanted) > MAX_PACKAGES:
        raise UserError("PACKAGES_INVALID", f"/packages: at most {MAX_PACKAGES}")
    for at, each in enumerate(wanted):
        # No address, no path, no option of pip.
        if not _REQUIREMENT.fullmatch(each):
            raise UserError("PACKAGES_INVALID", f"/packages/{at}: {each[:100]!r} is no a or a==1.2")
    return await asyncio.to_thread(_unpacked, sorted(set(wanted)), wheels)


def _unpacked(wanted: list[str], wheels: Path) -> Path:
    try:
        shelf = sorted((each.name, each.stat().st_mtime_ns) for each in wheels.glob("*.whl"))
    except OSError as error:
        raise Refused("PACKAGES_REFUSED", f"the folder of wheels can't be read: {error.strerror}") from error
    version = _version(interpreter()[0])
    # Another wheel in the folder may be another answer.
    key = hashlib.sha256(repr((wanted, str(wheels.resolve()), shelf, version)).encode()).hexdigest()[:32]
    place = _store() / key
    if place.is_dir():
        return place
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="new-") as folder:
        target = Path(folder, "packages")
        command = [
            *(sys.executable, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"),
            *("--no-index", "--find-links", str(wheels), "--only-binary", ":all:", "--no-compile", "--no-cache-dir"),
            *("--python-version", version, "--implementation", "cp", "--target", str(target), "--", *wanted),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=INSTALL_S,
                env={"PATH": "/usr/bin:/bin", "HOME": folder, "PIP_CONFIG_FILE": os.devnull, "LANG": "C.UTF-8"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Transient("PACKAGES_FAILED", f"the packages could not be unpacked: {error}") from error
        if done.returncode != 0 or not target.is_dir():
            said = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), done.stderr[-300:])
            raise Refused("PACKAGES_REFUSED", f"the folder of wheels does not give {', '.join(wanted)}: {said.strip()}")
        _let_all_read(target)
        try:
            target.rename(place)
        except OSError:
            # Another process was faster, with the same.
            if not place.is_dir():
                raise
    return place


def _store() -> Path:
    """Where unpacked sets are kept: a folder that is ours, and that nobody else may write to."""
    store = Path(tempfile.gettempdir(), f"rayloom-packages-{os.geteuid()}")
    store.mkdir(mode=0o755, exist_ok=True)
    status = store.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Refused("PACKAGES_REFUSED", f"{store} is not ours alone")
    return store


def _let_all_read(target: Path) -> None:
    for folder, _, files in os.walk(target):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
    shutil.rmtree(target / "bin", ignore_errors=True)


@cache
def _version(python: str) -> str:
    asked = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=ASK_S, check=True, env={}).stdout.strip()
