"""A Skill from a folder on disk, reached without following a single link below the root that is allowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final

from rayloom.tools.skills.front_matter import MAX_FAULTS, InvalidSkill
from rayloom.tools.skills.skill import IGNORED, MAX_BYTES, MAX_FILE_BYTES, MAX_FILES, skill_path

MAX_ENTRIES: Final = 10_000
MAX_DEPTH: Final = 32
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def from_folder(root: Path, path: str) -> tuple[dict[str, bytes], str]:
    """The files of the folder ``path`` below ``root``, by path, and the folder's name. ``path`` may be absolute.

    Takes its time: call it in a thread. Raises InvalidSkill with every fault.
    """
    parts = _below(root, path)
    reading = _Reading()
    with ExitStack() as stack:
        try:
            directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, directory)
            for part in parts:
                directory = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=directory)
                stack.callback(os.close, directory)
        except OSError as error:
            raise InvalidSkill(
                (f"there is no such folder in {root}, or a link leads to it: {error.strerror}",)
            ) from None
        reading.enter(directory, "", depth=0)
    if reading.faults:
        raise InvalidSkill(tuple(reading.faults[:MAX_FAULTS]))
    return reading.files, parts[-1]


def _below(root: Path, path: str) -> tuple[str, ...]:
    wanted = PurePosixPath(path)
    if "\0" in path or ".." in wanted.parts:
        raise InvalidSkill((f"must be a folder below {root}, without '..'",))
    if wanted.is_absolute():
        for base in (root, root.resolve()):
            if wanted.is_relative_to(base):
                wanted = wanted.relative_to(base)
                break
        else:
            raise InvalidSkill((f"must be a folder below {root}",))
    if not wanted.parts:
        raise InvalidSkill((f"must be a folder below {root}, not that itself",))
    return wanted.parts


class _Reading:
    """The files that were found, and what was wrong with others."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self._entries = 0
        self._left = MAX_BYTES

    def enter(self, directory: int, prefix: str, *, depth: int) -> None:
        """Take in all that lies in an open directory; below it all is as it was when it was opened."""
        for name in self._names(directory):
            # A name on disk may be no text at all.
            path = prefix + os.fsencode(name).decode("utf-8", "backslashreplace")
            try:
                self._take(directory, name, path, depth)
            except InvalidSkill as error:
                self.faults += error.faults
            except OSError as error:
                self.faults.append(f"{path}: can't be read: {error.strerror}")

    def _names(self, directory: int) -> Iterator[str]:
        for name in sorted(set(os.listdir(directory)) - IGNORED):
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                raise InvalidSkill((f"more than {MAX_ENTRIES:,} entries",))
            if len(self.faults) < MAX_FAULTS:
                yield name

    def _take(self, directory: int, name: str, path: str, depth: int) -> None:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            if depth >= MAX_DEPTH:
                raise InvalidSkill((f"{path}: lies deeper than {MAX_DEPTH} folders",))
            below = os.open(name, _FLAGS | os.O_DIRECTORY, dir_fd=directory)
            try:
                self.enter(below, path + "/", depth=depth + 1)
            finally:
                os.close(below)
        elif not stat.S_ISREG(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise InvalidSkill((f"{path}: is {what}",))
        else:
            checked = skill_path(path)
            if checked is not None:
                self._keep(checked, _content(directory, name, path))

    def _keep(self, path: str, data: bytes) -> None:
        if path in self.files:
            raise InvalidSkill((f"{path}: is there twice, in two spellings",))
        if len(self.files) == MAX_FILES:
            raise InvalidSkill((f"{path}: with it there are more than {MAX_FILES:,} files",))
        if len(data) > self._left:
            raise InvalidSkill((f"{path}: with it all files have more than {MAX_BYTES:,} bytes",))
        self._left -= len(data)
        self.files[path] = data


def _content(directory: int, name: str, path: str) -> bytes:
    with os.fdopen(os.open(name, _FLAGS, dir_fd=directory), "rb") as opened:
        # It may be another one than the one that was looked at.
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise InvalidSkill((f"{path}: is not a plain file",))
        data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidSkill((f"{path}: has more than {MAX_FILE_BYTES:,} bytes",))
    return data
