"""Packages for a program, from a folder of wheels or a package index that whoever runs rayloom has named.

Nothing is built. Each set that is asked for is made once on a host, by pip, which runs no code of a wheel; the sandbox
sees the result read-only.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.tools.sandbox.installer import INSTALL_S, Installer, python_version
from rayloom.tools.sandbox.package_store import PackageSet, PackageStore

INSIDE: Final = "/run/packages"
MAX_PACKAGES: Final = 64
FRESH_S: Final = 86_400
"""How long what an index gave for a name is taken again without asking it."""
_REQUIREMENT: Final = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(\[[A-Za-z0-9._, -]{1,100}\])?"
    r"( ?(==|>=|<=|~=|!=|<|>) ?[A-Za-z0-9.*+!_-]{1,50}(, ?(==|>=|<=|~=|!=|<|>) ?[A-Za-z0-9.*+!_-]{1,50}){0,9})?"
)
_threads: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="rayloom-packages")


@asynccontextmanager
async def opened(wanted: Sequence[str], installer: Installer) -> AsyncIterator[PackageSet]:
    """The set of these packages and what they need, which stays while the block runs.

    Raises UserError (``PACKAGES_INVALID``), Refused (``PACKAGES_REFUSED``: they can't be had) and Transient
    (``PACKAGES_FAILED``).
    """
    if len(wanted) > MAX_PACKAGES:
        raise UserError("PACKAGES_INVALID", f"/packages: at most {MAX_PACKAGES}")
    for at, each in enumerate(wanted):
        # No address, no path, no option of pip.
        if not _REQUIREMENT.fullmatch(each):
            raise UserError("PACKAGES_INVALID", f"/packages/{at}: {each[:100]!r} is no a or a==1.2")
    stop = threading.Event()
    working = _threads.submit(_held, sorted(set(wanted)), installer, stop)
    try:
        found = await asyncio.wrap_future(working)
    except asyncio.CancelledError:
        stop.set()
        working.add_done_callback(_let_go)
        raise
    try:
        yield found
    finally:
        found.let_go()


def _let_go(working: Future[PackageSet]) -> None:
    """Nobody waited for it to the end."""
    if not working.cancelled() and working.exception() is None:
        working.result().let_go()


def _held(wanted: list[str], installer: Installer, stop: threading.Event) -> PackageSet:
    try:
        key = _key(wanted, installer)
        store = PackageStore(set_max_bytes=installer.max_bytes)
        return store.held(key, lambda new, lock: installer.fill(new, wanted, lock, stop), within_s=INSTALL_S, stop=stop)
    except OSError as error:
        raise Transient("PACKAGES_FAILED", f"the packages could not be unpacked: {error}") from error


def _key(wanted: list[str], installer: Installer) -> str:
    shelf: list[tuple[str, int]] = []
    if installer.wheels is not None:
        try:
            # Another wheel in the folder may be another answer.
            shelf = sorted((each.name, each.stat().st_mtime_ns) for each in installer.wheels.iterdir())
        except OSError as error:
            raise Refused("PACKAGES_REFUSED", f"the folder of wheels can't be read: {error.strerror}") from error
    day = int(time.time() // FRESH_S) if installer.index else 0
    folder = str(installer.wheels.resolve()) if installer.wheels else ""
    known = (wanted, folder, shelf, installer.index, day, installer.max_bytes, python_version())
    return hashlib.sha256(repr(known).encode()).hexdigest()[:32]
