"""What a program left in its container's workspace, told file by file. Runs inside, beside the `warden`.

The same rules as in `workspace`, which reads where we can reach: plain files only, no link followed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable

CHUNK = 65536
MAX_ENTRIES = 20000
MAX_PARTS = 32
# No more is told of one file beside its content: who has a longer path is left out. No path that may come back is.
MAX_HEAD_BYTES = 8192

Send = Callable[[bytes, bytes], None]


class Leftovers:
    """The plain files below a folder that are new or changed. Nothing runs any more that could swap one for a link."""

    def __init__(self, send: Send, digests: dict[str, bytes], max_count: int, max_bytes: int) -> None:
        self.send = send
        self.digests, self.count, self.room = digests, max_count, max_bytes
        self.entries = MAX_ENTRIES
        self.left_out: list[str] = []

    def walk(self, folder: int, prefix: str, depth: int) -> None:
        """Tell what is in a folder, given as an open directory."""
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self.entries -= 1
                if self.entries < 0:
                    self.left_out.append(prefix or ".")
                    break
                found.append(entry)
            found.sort(key=lambda entry: os.fsencode(entry.name))
            kinds = [(e.name, e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False)) for e in found]
        for name, is_file, is_folder in kinds:
            path = prefix + name
            if is_file:
                self.file(folder, name, path)
            elif is_folder:
                below = opened(folder, name, os.O_DIRECTORY) if depth < MAX_PARTS and self.entries > 0 else None
                if below is None:
                    self.left_out.append(path)
                    continue
                self.walk(below, path + "/", depth + 1)
                os.close(below)

    def last_word(self, code: int, oom: bool) -> None:
        """Tell how the program ended, and what was left out."""
        left_out = {"count": len(self.left_out), "first": [path[:200] for path in self.left_out[:1]]}
        self.send(b"x", json.dumps({"exit_code": code, "oom": oom, "left_out": left_out}).encode())

    def file(self, folder: int, name: str, path: str) -> None:
        """Tell one file, unless it is as it was given, or past a cap."""
        handle = opened(folder, name, 0)
        if handle is None:
            self.left_out.append(path)
            return
        with os.fdopen(handle, "rb") as file:
            size = os.fstat(handle).st_size
            head = json.dumps({"path": path, "size": size}).encode()
            if len(head) > MAX_HEAD_BYTES:
                self.left_out.append(path)
                return
            known = self.digests.get(path)
            if known is None and (self.count <= 0 or size > self.room):
                self.left_out.append(path)
                return
            if known is not None:
                digest = hashlib.sha256()
                for part in iter(lambda: file.read(CHUNK), b""):
                    digest.update(part)
                if digest.digest() == known:
                    return
                if self.count <= 0 or size > self.room:
                    self.left_out.append(path)
                    return
                file.seek(0)
            self.count -= 1
            self.room -= size
            self.send(b"f", head)
            sent = 0
            while sent < size:
                part = file.read(min(CHUNK, size - sent))
                self.send(b"d", part)
                sent += len(part)


def opened(folder: int, name: str, flags: int) -> int | None:
    """An entry of a folder, even if the program took away its own right to it; None when it can't be opened."""
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for rights in (None, 0o700):
        try:
            if rights is not None:
                os.chmod(name, rights, dir_fd=folder)
            return os.open(name, flags, dir_fd=folder)
        except OSError:
            continue
    return None
