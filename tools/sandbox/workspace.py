"""What a run left in its workspace: plain files only, reached without following a single link."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from rayloom.dag.errors import UserError
from rayloom.tools.paths import MAX_PARTS, workspace_path
from rayloom.tools.sandbox.sandbox import OutFile

MAX_ENTRIES: Final = 20_000
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Without the machine's own tables, so that every node names a type the same.
_TYPES: Final = mimetypes.MimeTypes()


def media_type(path: str) -> str:
    """The media type that a file's name suggests."""
    return _TYPES.guess_type(path, strict=False)[0] or "application/octet-stream"


def collect(
    root: int, before: Mapping[str, bytes], *, max_count: int, max_bytes: int
) -> tuple[dict[str, OutFile], list[str]]:
    """The files below a directory that are new or differ from ``before``, and the paths left out.

    ``root`` is an open directory whose programs are all dead. Symbolic links, devices, sockets and pipes are
    ignored; a file past the caps, or with a name that no workspace takes, is left out.
    """
    files: dict[str, OutFile] = {}
    left_out: list[str] = []
    room = max_bytes
    for seen, (path, parent, name) in enumerate(_walk(root, left_out)):
        if seen == MAX_ENTRIES:
            left_out.append(path)
            break
        try:
            checked = workspace_path(path)
        except UserError:
            left_out.append(path)
            continue
        known = before.get(checked)
        data = _read(parent, name, max(room, len(known or b"")))
        if data is None or len(files) >= max_count:
            left_out.append(path)
        elif data != known:
            if len(data) > room:
                left_out.append(path)
                continue
            room -= len(data)
            files[checked] = OutFile(data=data, media_type=media_type(checked))
    return files, left_out


def _walk(directory: int, left_out: list[str], prefix: str = "") -> Iterator[tuple[str, int, str]]:
    """Every plain file as (path, its open directory, its name), by name; one open directory a level, levels capped."""
    with os.scandir(directory) as entries:
        found = sorted(islice(entries, MAX_ENTRIES + 1), key=lambda entry: entry.name)
    if len(found) > MAX_ENTRIES:
        left_out.append(prefix or ".")
        found = found[:MAX_ENTRIES]
    for entry in found:
        path = prefix + entry.name
        if entry.is_file(follow_symlinks=False):
            yield path, directory, entry.name
        elif entry.is_dir(follow_symlinks=False):
            below = _open(directory, entry.name, os.O_DIRECTORY) if path.count("/") < MAX_PARTS else None
            if below is None:
                left_out.append(path)
                continue
            try:
                yield from _walk(below, left_out, path + "/")
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
