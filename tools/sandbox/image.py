"""A container image made of this machine's own Python and shell: no registry, no package manager, no network.

It holds an interpreter with its standard library, a POSIX shell with the usual small tools, and the shared libraries
that those need, each at the path where this machine has it.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import orjson

from rayloom.dag.errors import Refused
from rayloom.tools.sandbox.engine import Engine, EngineError

NAME: Final = "rayloom-sandbox:1"
"""The number is that of the recipe: an image of an earlier one is not taken."""
BUILD_S: Final = 300.0
ASK_S: Final = 30.0
_ASK: Final = (
    "import json, sys, sysconfig; print(json.dumps({'stdlib': sysconfig.get_path('stdlib'), 'prefix': sys.base_prefix, "
    "'executable': sys.executable}))"
)
_LEFT_OUT: Final = frozenset(
    """
    test tests idlelib tkinter turtledemo lib2to3 ensurepip __pycache__ site-packages dist-packages pydoc_data
    """.split()  # noqa: SIM905 - one a line would be a page
)
_TOOLS: Final = tuple(
    """
    sh bash awk base64 basename cat chmod cksum cmp comm cp cut date dd df diff dirname du echo env expand expr factor
    false find fold grep egrep fgrep gzip gunzip head id join ln ls mawk gawk md5sum mkdir mkfifo mktemp mv nl
    nproc od paste printf pwd readlink realpath rev rm rmdir sed seq setsid nohup sha1sum sha256sum shuf sleep sort
    split stat stdbuf sum tac tail tar tee test timeout touch tr true truncate tsort uname uniq wc which whoami xargs
    xxd yes zcat
    """.split()  # noqa: SIM905 - one a line would be a page
)
_TEXTS: Final = {
    "etc/passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nsandbox:x:65534:65534:sandbox:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nsandbox:x:65534:\n",
}
_FOLDERS: Final = ("etc", "proc", "sys", "dev", "run", "run/code", "workspace", "usr", "usr/bin", "usr/lib")


async def build(engine: Engine, name: str = NAME, *, python: str | None = None) -> int:
    """Make the image on an engine; gives its size in bytes before it is stored.

    ``python``: the interpreter to take, else that of the machine. Raises Refused (``SANDBOX_IMAGE_FAILED``), and what
    `Engine.ask` raises.
    """
    try:
        data = await asyncio.to_thread(archive, python)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Refused("SANDBOX_IMAGE_FAILED", f"this machine's Python can't be put into an image: {error}") from error
    repository, _, tag = name.rpartition(":")
    query = {"fromSrc": "-", "repo": repository or name, "tag": tag if repository else "latest"}
    try:
        said = await engine.ask("POST", "/images/create", query=query, data=data, within_s=BUILD_S)
        await engine.ask("GET", f"/images/{name}/json")
    except EngineError as error:
        raise Refused(
            "SANDBOX_IMAGE_FAILED", f"the container engine did not take the image: {error.message}"
        ) from error
    if "error" in str(said).lower():
        raise Refused("SANDBOX_IMAGE_FAILED", f"the engine did not take the image: {str(said)[-300:]}")
    return len(data)


def archive(python: str | None = None) -> bytes:
    """The root file system as a tar."""
    python = os.path.realpath(
        python or ("/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable)
    )
    asked = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, timeout=ASK_S, check=True, env={})
    about = orjson.loads(asked.stdout)
    root = _Root()
    for path in _library(Path(about["stdlib"])):
        root.put(str(path), path)
    root.put(python, Path(python))
    for name in ("python3", "python"):
        root.link(f"/usr/bin/{name}", python)
    for name in _TOOLS:
        if found := shutil.which(name, path="/usr/bin:/bin"):
            root.put(f"/usr/bin/{name}", Path(os.path.realpath(found)))
    if not root.has("/usr/bin/sh"):
        raise ValueError("there is no sh in /usr/bin or /bin")
    for library in _shared(root.programs):
        root.put(library, Path(os.path.realpath(library)))
    # A Python elsewhere finds its libraries beside it.
    for path in Path(about["prefix"], "lib").glob("libpython*.so*"):
        root.put(str(path), path.resolve())
    return root.close()


def _library(stdlib: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(stdlib):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("config-"))
        for name in sorted(files):
            if not name.endswith((".a", ".pyc")):
                yield Path(folder, name)


def _shared(programs: Iterable[Path]) -> list[str]:
    """The paths of the shared libraries that these programs and modules are linked with."""
    found: set[str] = set()
    for program in programs:
        said = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, timeout=ASK_S, env={"PATH": "/usr/bin:/bin"}
        )
        found |= set(re.findall(r"(/\S+?\.so[^\s]*) \(", said.stdout))
    return sorted(found)


class _Root:
    """The tar while it is written. /bin, /lib and /lib64 are links into /usr, whatever the machine has."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")  # noqa: SIM115 - `close` closes it
        self._seen: set[str] = set()
        self.programs: list[Path] = []
        for folder in (*_FOLDERS, "usr/lib64", "usr/sbin"):
            self._folder(folder, 0o755)
        self._folder("tmp", 0o1777)
        for name in ("bin", "sbin", "lib", "lib64"):
            self.link(f"/{name}", f"usr/{name}")
        for name, text in _TEXTS.items():
            self._add(name, text.encode(), 0o644)

    def has(self, path: str) -> bool:
        """Whether it is there."""
        return path.strip("/") in self._seen

    def put(self, place: str, source: Path) -> None:
        """A file of the machine; once only."""
        inside = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", place).strip("/")
        if inside in self._seen:
            return
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            return
        data = source.read_bytes()
        if data.startswith(b"\x7fELF"):
            self.programs.append(source)
        self._add(inside, data, 0o755 if status.st_mode & 0o111 else 0o644)

    def link(self, place: str, target: str) -> None:
        """A symbolic link."""
        if place.strip("/") in self._seen or place == target:
            return
        entry = self._entry(place.strip("/"), 0o777)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def close(self) -> bytes:
        """The whole."""
        self._tar.close()
        return self._buffer.getvalue()

    def _folder(self, name: str, mode: int) -> None:
        entry = self._entry(name, mode)
        entry.type = tarfile.DIRTYPE
        self._tar.addfile(entry)

    def _add(self, name: str, data: bytes, mode: int) -> None:
        entry = self._entry(name, mode)
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))

    def _entry(self, name: str, mode: int) -> tarfile.TarInfo:
        self._seen.add(name)
        entry = tarfile.TarInfo(name)
        entry.mode = mode
        return entry
