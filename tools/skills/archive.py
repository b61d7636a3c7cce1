"""A Skill from a zip file: nothing is unpacked to disk, and nothing is believed that the archive says of itself."""

from __future__ import annotations

import io
import stat
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import Final

from rayloom.tools.skills.front_matter import MAX_FAULTS, InvalidSkill
from rayloom.tools.skills.skill import ENTRY, IGNORED, MAX_BYTES, MAX_FILE_BYTES, MAX_FILES, skill_path

MAX_ENTRIES: Final = 10_000
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def from_zip(data: bytes) -> tuple[dict[str, bytes], str | None]:
    """The files of a zip, by path, and the name of the folder that all of them lie in; None where they lie in none.

    Takes its time: call it in a thread. Raises InvalidSkill with every fault.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = _files(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise InvalidSkill((f"not a zip file that can be read: {error}",)) from None
    return _without_folder(files)


def _files(archive: zipfile.ZipFile) -> dict[str, bytes]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise InvalidSkill((f"more than {MAX_ENTRIES:,} entries",))
    faults: list[str] = []
    wanted: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        try:
            path = _checked(entry)
        except InvalidSkill as error:
            faults += error.faults
            continue
        if path is None:
            continue
        if path in wanted:
            faults.append(f"{path}: is in it twice")
        wanted[path] = entry
    folders = {str(folder) for path in wanted for folder in PurePosixPath(path).parents}
    faults += [f"{path}: is both a file and a folder" for path in sorted(folders & wanted.keys())]
    if len(wanted) > MAX_FILES:
        faults.append(f"more than {MAX_FILES:,} files")
    if faults:
        raise InvalidSkill(tuple(faults[:MAX_FAULTS]))
    return _unpacked(archive, wanted)


def _checked(entry: zipfile.ZipInfo) -> str | None:
    """The path of an entry that is a file of the Skill; None for any other that does no harm. Raises InvalidSkill."""
    # What follows a NUL zipfile itself cuts off; the name as it was written is kept beside.
    name = entry.orig_filename
    shown = name[:200]
    if IGNORED.intersection(PurePosixPath(name).parts) and ".." not in PurePosixPath(name).parts:
        return None
    path = skill_path(name.rstrip("/") if entry.is_dir() else name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "neither a file nor a folder"
        raise InvalidSkill((f"{shown}: is {what}",))
    if entry.is_dir():
        return None
    if entry.flag_bits & 0x1:
        raise InvalidSkill((f"{shown}: is encrypted",))
    if entry.compress_type not in _METHODS:
        raise InvalidSkill((f"{shown}: is compressed by another method than deflate",))
    return path


def _unpacked(archive: zipfile.ZipFile, wanted: dict[str, zipfile.ZipInfo]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    for path, entry in wanted.items():
        most = min(MAX_FILE_BYTES, left)
        with archive.open(entry) as opened:
            # One byte more would be too many: so much is unpacked at most, whatever size it claims.
            data = opened.read(most + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InvalidSkill((f"{path}: has more than {MAX_FILE_BYTES:,} bytes",))
        if len(data) > left:
            raise InvalidSkill((f"all files together have more than {MAX_BYTES:,} bytes",))
        left -= len(data)
        files[path] = data
    return files


def _without_folder(files: dict[str, bytes]) -> tuple[dict[str, bytes], str | None]:
    tops = {path.partition("/")[0] for path in files}
    if ENTRY in files or len(tops) != 1:
        return files, None
    [top] = tops
    inside = {path.removeprefix(f"{top}/"): data for path, data in files.items() if "/" in path}
    return (inside, top) if inside else (files, None)
