"""The lock files pin everything that an install needs, for every Python that the project supports."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from rayloom.cluster.checks import PYTHONS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
RUN, DEV = ROOT / "requirements.lock", ROOT / "requirements-dev.lock"
LOCAL_MODELS = sorted((ROOT / "cluster" / "local_model").glob("*.lock"))
LOCKS = [pytest.param(lock, id=lock.name) for lock in (RUN, DEV, *LOCAL_MODELS)]


def _entries(lock: Path) -> list[str]:
    """The pins of a lock, each with its hashes."""
    return re.split(r"\n(?=\S)", lock.read_text().strip())


def _pins(lock: Path) -> list[Requirement]:
    return [Requirement(entry.partition("\\")[0]) for entry in _entries(lock)]


def _versions(lock: Path) -> dict[str, Version]:
    """The pinned version of each package that this Python on this machine gets from a lock."""
    return {
        canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("=="))
        for pin in _pins(lock)
        if pin.marker is None or pin.marker.evaluate()
    }


def _roots(lock: Path) -> list[Requirement]:
    """What a lock is made from."""
    if lock in LOCAL_MODELS:
        lines = lock.with_suffix(".in").read_text().splitlines()
        return [Requirement(line) for line in lines if not line.startswith("#")]
    options = re.search(rf'"{re.escape(lock.name)}((?: --extra \S+)+)', MAKEFILE)
    assert options, f"`make lock` does not make {lock.name}"
    extras = [PROJECT["optional-dependencies"][extra] for extra in re.findall(r"--extra ([\w-]+)", options[1])]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *(line for extra in extras for line in extra))]


def _needs(roots: Iterable[Requirement], *, installed: bool) -> Iterator[tuple[str, Requirement]]:
    """Every requirement that applies here, each with the package that has it; markers and extras are followed.

    ``installed``: whether each package must be installed, for its metadata.
    """
    ahead = [("the project", need) for need in roots]
    seen: set[tuple[str, str]] = set()
    while ahead:
        asker, need = ahead.pop()
        yield asker, need
        for extra in {"", *need.extras}:
            if (need.name, extra) in seen:
                continue
            seen.add((need.name, extra))
            try:
                lines = requires(need.name) or []
            except PackageNotFoundError:
                assert not installed, f"{need.name} is not installed: run `make setup`"
                continue
            wanted = map(Requirement, lines)
            ahead += [
                (need.name, each) for each in wanted if each.marker is None or each.marker.evaluate({"extra": extra})
            ]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_pins_bare_names_with_hashes_and_names_no_registry(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-{1,2}(?!hash=)[a-z]", text, re.MULTILINE), "an option of pip in a lock"
    for entry in _entries(lock):
        assert "--hash=sha256:" in entry, f"{entry[:60]} has no hash"
    for pin in _pins(lock):
        # pip 23 takes `name[extra]` for another project than `name`, which then is not pinned.
        assert not pin.extras, f"{pin} has extras"
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), f"{pin} is not pinned"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_pins_every_requirement_that_applies(lock: Path) -> None:
    versions = _versions(lock)
    needs = list(_needs(_roots(lock), installed=lock not in LOCAL_MODELS))
    assert needs
    for asker, need in needs:
        version = versions.get(canonicalize_name(need.name))
        assert version is not None, f"{asker} needs {need}, which {lock.name} does not pin: run `make lock`"
        assert need.specifier.contains(version, prereleases=True), f"{asker} needs {need}, and {version} is locked"


def test_needs_follow_extras_and_markers() -> None:
    needs = {(asker, canonicalize_name(need.name)) for asker, need in _needs(_roots(RUN), installed=True)}
    # mcp asks for pyjwt[crypto], ray[serve] for uvicorn[standard].
    assert {("pyjwt", "cryptography"), ("uvicorn", "httptools")} <= needs
    assert "colorama" not in {name for _, name in needs}, "that is for Windows"


def test_development_lock_holds_the_other_in_the_same_versions() -> None:
    run, dev = ({(pin.name, str(pin.specifier), str(pin.marker)) for pin in _pins(lock)} for lock in (RUN, DEV))
    assert run <= dev


def test_locks_are_without_the_packages_of_a_local_model() -> None:
    # Hundreds of megabytes that nobody gets who did not ask for them.
    models = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["local-llm"]}
    for lock in (RUN, DEV):
        assert not models & {canonicalize_name(pin.name) for pin in _pins(lock)}


def test_supported_pythons_are_the_same_everywhere() -> None:
    names = [f"{major}.{minor}" for major, minor in PYTHONS]
    assert re.findall(r"^PYTHONS := (.*)$", MAKEFILE, re.MULTILINE) == [" ".join(names)]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}.1" in allowed] == names
    assert f"--python-version {names[0]}" in MAKEFILE, "the locks are made for the oldest and all newer ones"
    said = f"Python {', '.join(names[:-1])} or {names[-1]}"
    for text in (MAKEFILE, (ROOT / "README.md").read_text()):
        assert said in text
