"""What is made of pip's words, and of one that is not pip as we know it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayloom.dag.errors import Refused
from rayloom.tools.sandbox import installer
from rayloom.tools.sandbox.installer import Installer
from tests.integration.tools.wheels import make_source, make_wheel

INDEX = "https://user:s3cret@pypi.example.com/simple"
CUT = """2026-11-26T03:00:00,000 ERROR: Exception:
2026-11-26T03:00:00,000 Traceback (most recent call last):
2026-11-26T03:00:00,000 pip._vendor.urllib3.exceptions.ProtocolError: ('Connection broken', ConnectionResetError())
"""
MALFORMED = """2026-11-26T03:00:00,000 ERROR: Exception:
2026-11-26T03:00:00,000 Traceback (most recent call last):
2026-11-26T03:00:00,000 pip._vendor.packaging.requirements.InvalidRequirement: Invalid URL given
"""


def make(index: str = INDEX, wheels: Path | None = None) -> Installer:
    return Installer(wheels=wheels, index=index, max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("log", "index", "code"),
    [
        (CUT, INDEX, "PACKAGES_FAILED"),
        (CUT, "", "PACKAGES_REFUSED"),
        (MALFORMED, INDEX, "PACKAGES_REFUSED"),
        ("ERROR: HTTP error 503 while getting https://x/a.whl", INDEX, "PACKAGES_FAILED"),
        ("ERROR: HTTP error 404 while getting https://x/a.whl", INDEX, "PACKAGES_REFUSED"),
        ("", INDEX, "PACKAGES_REFUSED"),
    ],
)
def test_what_may_pass_is_told_from_what_does_not(log: str, index: str, code: str) -> None:
    assert make(index)._failure(["a"], log).code == code


def test_the_reason_is_what_pip_says() -> None:
    for said in ("ERROR: no such thing", "error: no such thing"):
        error = make("")._failure(["a"], f"2026-11-26T03:00:00,000 looking\n2026-11-26T03:00:00,000 {said}\n")
        assert error.message.endswith(f"does not give a: {said}")


def test_the_password_of_an_index_is_in_no_text() -> None:
    assert "s3cret" not in repr(make())
    assert "s3cret" not in str(make()._failure(["a"], f"ERROR: nothing at {INDEX}"))


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Ask for a package of an empty folder."""
    monkeypatch.setattr(installer, "python_version", lambda: f"{sys.version_info[0]}.{sys.version_info[1]}")
    new = tmp_path / "new"
    new.mkdir()
    with (tmp_path / "lock").open("w") as lock:

        def fill(name: str) -> None:
            make("", tmp_path).fill(new, [name], lock.fileno(), threading.Event())

        yield fill


def first(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let this run before pip does."""
    monkeypatch.setattr(installer, "_PIP", f"{code}\n{installer._PIP}")


def test_a_pip_that_would_build_is_not_used(fill: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    first(monkeypatch, "import sys; sys.modules['pip._internal.distributions.sdist'] = None")
    with pytest.raises(Refused, match="kept from building") as error:
        fill("a")
    assert error.value.code == "PACKAGES_REFUSED"


def test_an_installer_that_nobody_ends_ends_by_itself(
    fill: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "said"
    first(monkeypatch, f"import signal; signal.alarm = lambda s: open({str(said)!r}, 'w').write(str(s))")
    with pytest.raises(Refused):
        fill("no-such-thing")
    assert int(said.read_text()) == installer.INSTALL_S + 30


def test_what_got_by_that_is_not_built_either(
    fill: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path, "raysource", "1.0", f"open({str(tmp_path / 'built')!r}, 'w')\n")
    make_wheel(tmp_path, "rayevil", "1.0", "", f"raysource @ file://{tmp_path}/raysource-1.0.tar.gz")
    lets_pass = installer._PIP.replace("InstallRequirement.__init__ = begin_by_name\n", "")
    assert lets_pass != installer._PIP
    monkeypatch.setattr(installer, "_PIP", lets_pass)
    with pytest.raises(Refused, match="raysource is no wheel, and nothing is built"):
        fill("rayevil")
    assert not (tmp_path / "built").exists()
