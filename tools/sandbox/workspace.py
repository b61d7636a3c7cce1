"""What a run left in its workspace: plain files only, reached without following a single link."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

from rayloom.dag.errors import UserError
from rayloom.tools.paths import MAX_PARTS, workspace_path
from rayloom.tools.sandbox.sandbox import OutFile

MAX_ENTRIES: Final = 20_000
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Without the machine's own tables, so that every node names a type the same.
_TYPES: Final = mimetypes.MimeTypes()
_threads: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="rayloom-workspace")


def media_type(path: str) -> str:
    """The media type that a file's name suggests."""
    return _TYPES.guess_type(path, strict=False)[0] or "application/octet-stream"


async def collected(
    root: int, before: Mapping[str, bytes], *, max_count: int, max_bytes: int
) -> tuple[dict[str, OutFile], list[str]]:
    """`collect` in a thread. A cancellation does not wait for it; it ends soon after, and reads from nothing else.

    ``root`` may be closed, and its number be another's, before the thread has ended: it has one of its own.
    """
    held = os.dup(root)
    stop = threading.Event()

    def work() -> tuple[dict[str, OutFile], list[str]]:
        try:
            return collect(held, before, max_count=max_count, max_bytes=max_bytes, is_stopped=stop.is_set)
        finally:
            os.close(held)

    working = _threads.submit(work)
    try:
        return await asyncio.wrap_future(working)
    finally:
        stop.set()
        if working.cancel():  # it has not begun, and never will
            os.close(held)


def collect(
    root: int,
    before: Mapping[str, bytes],
    *,
    max_count: int,
    max_bytes: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, OutFile], list[str]]:
    """The files below a directory that are new or differ from ``before``, and the paths left out.

    ``root`` is an open directory whose programs are all dead. Symbolic links, devices, sockets and pipes are
    ignored; a file past the caps, or with a name that no workspace takes, is left out.
    """
    files: dict[str, OutFile] = {}
    walk = _Walk(is_stopped)
    left_out = walk.left_out
    room = max_bytes
    for path, parent, name in walk.files(root):
        try:
            checked = workspace_path(path)
        except UserError:
            left_out.append(path)
            continue
        known = before.get(checked)
        if known is None and len(files) >= max_count:
            left_out.append(path)
            continue
        data = _read(parent, name, max(room, len(known or b"")))
        if data is None or (data != known and (len(files) >= max_count or len(data) > room)):
            left_out.append(path)
        elif data != known:
            room -= len(data)
            files[checked] = OutFile(data=data, media_type=media_type(checked))
    return files, left_out


class _Walk:
    """One way through a tree, past so many entries of any kind; ``left_out`` says where it went no further."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._is_stopped = is_stopped
        self._entries_left = MAX_ENTRIES
        self.left_out: list[str] = []

    def files(self, directory: int, prefix: str = "") -> Iterator[tuple[str, int, str]]:
        """Every plain file as (path, its open directory, its name), by name; one open directory a level."""
        with os.scandir(directory) as entries:
            found = sorted(islice(entries, self._entries_left + 1), key=lambda entry: entry.name)
        if len(found) > self._entries_left:
            self.left_out.append(prefix or ".")
            found = found[: self._entries_left]
        self._entries_left -= len(found)
        for entry in found:
            if self._is_stopped():
                return
            path = prefix + entry.name
            if entry.is_file(follow_symlinks=False):
                yield path, directory, entry.name
            elif entry.is_dir(follow_symlinks=False):
                may_enter = self._entries_left > 0 and path.count("/") < MAX_PARTS
                below = _open(directory, entry.name, os.O_DIRECTORY) if may_enter else None
                if below is None:
                    self.left_out.append(path)
                    continue
                try:
                    yield from self.files(below, path + "/")
                finally:
                    os.close(below)


def _open(parent: int, name: str, flags: int = 0) -> int | None:
    try:
        return os.open(name, _FLAGS | flags, dir_fd=parent)
    except PermissionError:
        pass
    except OSError:
        return None
    try:
        # The program took its own rights away. It is dead, and the entry is no link: nothing can be swapped in.
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, _FLAGS | flags, dir_fd=parent)
    except OSError:
        return None


def _read(parent: int, name: str, room: int) -> bytes | None:
    file = _open(parent, name)
    if file is None:
        return None
    with os.fdopen(file, "rb") as opened:
        # A sparse file costs its maker nothing: look before reading.
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > room:
            return None
        return opened.read(room + 1)
