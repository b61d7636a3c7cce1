"""The house itself: rooms, files, names and packaging are what CONTRIBUTING says they are."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("dag", "db", "tools", "actors", "serve", "cluster")
MAX_LINES = 600
# Files that may be longer, each with the number it must not pass; the numbers only ever go down.
LONGER: dict[str, int] = {}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "base", "core"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def _sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


SOURCES = [pytest.param(path, id=_name(path)) for path in _sources()]


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no opening docstring"
    lines = text.count("\n")
    assert lines <= LONGER.get(_name(path), MAX_LINES), "what else moved in here?"


def test_the_list_of_longer_files_shrinks_with_them() -> None:
    for name, limit in LONGER.items():
        lines = (ROOT / name).read_text().count("\n")
        assert limit - 20 <= lines, f"{name} has {lines} lines now: lower its limit, or take it off the list"
        assert lines > MAX_LINES


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_is_named_after_a_noun(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES - _tool_families(path)


def _tool_families(path: Path) -> set[str]:
    # `core.noop` and its sisters are a family of tools with that name.
    return {"core"} if path.parent == ROOT / "tools" / "builtin" else set()


@pytest.mark.parametrize("path", SOURCES)
def test_our_imports_are_written_out_in_full(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        flat = [name for name in names if name.split(".")[0] in ROOMS]
        assert not flat, f"line {node.lineno}: {flat} is another file than rayloom.{flat[0] if flat else ''}"


@pytest.mark.parametrize("path", SOURCES)
def test_exports_are_few(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            assert isinstance(node.value, ast.List | ast.Tuple)
            assert len(node.value.elts) <= 15


@pytest.mark.parametrize("path", SOURCES)
def test_only_the_settings_read_the_environment(path: Path) -> None:
    if _name(path) == "cluster/settings.py":
        return
    found = re.findall(r"os\.(?:environ|getenv)[^\n]*[\"'](RAYLOOM_\w+)", path.read_text())
    assert not found, f"{found} is read past cluster/settings.py"


def test_nothing_is_left_for_later() -> None:
    for path in _sources():
        found = re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())
        assert found is None, f"{_name(path)}: {found}"


def test_every_folder_with_code_is_a_listed_package() -> None:
    folders = {path.parent for path in _sources()}
    packages = {"rayloom." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert packages == set(SETUPTOOLS["packages"]), "mend [tool.setuptools] packages in pyproject.toml"
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{_name(folder)} has no __init__.py"


def test_every_room_is_mapped_under_one_name() -> None:
    assert SETUPTOOLS["package-dir"] == {f"rayloom.{room}": room for room in ROOMS}


def test_the_extras_are_declared_and_a_local_model_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"embedded", "e2b", "bench", "local-llm", "build", "dev"}
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement) for requirement in extras["local-llm"])
