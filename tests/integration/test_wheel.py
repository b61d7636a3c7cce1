"""A wheel built from the checkout holds every file of the six rooms, under `rayloom/`, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("dag", "db", "tools", "actors", "serve", "cluster")
# For those who change the code, not for those who run it.
DEVELOPMENT_ONLY = {"dag/ruff.toml", "cluster/local_model/small.in", "cluster/local_model/coder.in"}


def _build(folder: Path) -> Path:
    """Build from a copy, because setuptools leaves its work in the folder that it builds from."""
    copy = folder / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), copy],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_what_the_rooms_hold(tmp_path: Path) -> None:
    with zipfile.ZipFile(_build(tmp_path)) as wheel:
        names = set(wheel.namelist())
    shipped = {name.removeprefix("rayloom/") for name in names if name.startswith("rayloom/")}
    rooms = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and not any(p == "__pycache__" or p.startswith(".") for p in path.relative_to(ROOT).parts)
    }
    assert shipped == rooms - DEVELOPMENT_ONLY, "mend [tool.setuptools] packages or package-data in pyproject.toml"
    assert {name.split("/")[0] for name in names} == {"rayloom", "rayloom-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
