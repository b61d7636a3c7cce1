"""Skills that others wrote to the specification, unchanged: as libraries and tools on PyPI and npm ship them.

(Most public ones live in repositories, which a test can't reach everywhere; these are packages.)
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest

from rayloom.tools.skills.folder import from_folder
from rayloom.tools.skills.front_matter import InvalidSkill
from rayloom.tools.skills.skill import read_skill

INSTALL_S: Final = 280
PYPI: Final = {
    "fastapi==0.165.0": "896f48462042bb4f162147eb8fac7e858753dc1f486765709baf105d70e4fc5b",
    "sqlmodel==0.0.50": "df518bc74287e1da0b0d7833cd00f55e77cb1cdc8c27bc29f77eea27acb51c1a",
    "streamlit==1.67.0": "f29da87c443bfbdfc52738616e3d65745d438e718da8faf69e2be0da1e52ce64",
    "typer==0.29.2": "f30731f8ca758368b836b3714872e58e395cef8fcaff918c853b1969ed5274e7",
    "library-skills==0.0.19": "99cc10b900860bd354f1ca4a1724f0ce51f5b40246775c1db63567c91e920c6e",
}
NPM: Final = {
    "@playwright/cli@0.1.22": "bb4840be17006e2b7ba856224dc3062f6571d5f647352476f95c5e77ff5d679a",
    "playwright-core@1.65.1": "6f5a60be62a4fddfbe7d10c448d8fbd54547da3358f2f8a04211440471ee863e",
    "openskills@1.5.0": "2aa0c31c2a09fad8c32705d519a5497aa671381189bde9d8f7911a7967a9d9bc",
    "@tanstack/intent@0.4.0": "494fd2c31644c765370026d77599b78b9bab1c6775cd3fb3c72ec712e08bb67e",
}
BREAKS_THE_SPECIFICATION: Final = {"tool_skill": "must equal the name of its folder"}


def _run(*command: str, cwd: Path) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"


@pytest.fixture(scope="module")
def from_pypi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the packages from PyPI."""
    folder = tmp_path_factory.mktemp("pypi-skills")
    wanted = folder / "wanted.txt"
    wanted.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in PYPI.items()))
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary=:all:")
    _run(sys.executable, "-m", "pip", "download", *quiet, "-r", str(wanted), cwd=folder)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "content" / wheel.stem)
    return folder / "content"


@pytest.fixture(scope="module")
def from_npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The content of the packages from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on this machine")
    folder = tmp_path_factory.mktemp("npm-skills")
    _run(npm, "pack", "--silent", *NPM, cwd=folder)
    packed = sorted(folder.glob("*.tgz"))
    assert {hashlib.sha256(file.read_bytes()).hexdigest() for file in packed} == set(NPM.values())
    for file in packed:
        with tarfile.open(file) as archive:
            # What it holds was checked above; Python's own filter came with 3.11.4 (Debian 12 has 3.11.2).
            safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(folder / "content" / file.stem, **safe)
    return folder / "content"


def _expect_loaded(content: Path, least: int) -> None:
    loaded = []
    for found in sorted(content.rglob("SKILL.md")):
        files, name = from_folder(found.parent.parent, found.parent.name)
        if said := BREAKS_THE_SPECIFICATION.get(name):
            with pytest.raises(InvalidSkill, match=said):
                read_skill(files, folder=name)
            continue
        skill = read_skill(files, folder=name)
        assert skill.about.name == name
        assert len(skill.about.description) > 20
        assert len(skill.instructions) > 100
        loaded.append(name)
    assert len(loaded) >= least, loaded


def test_skills_of_packages_on_pypi_load_unchanged(from_pypi: Path) -> None:
    _expect_loaded(from_pypi, 5)


def test_skills_of_packages_on_npm_load_unchanged(from_npm: Path) -> None:
    _expect_loaded(from_npm, 9)
