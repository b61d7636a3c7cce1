"""Programs that import what a folder of wheels gives, and what no folder gives."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.errors import RayloomError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.integration.tools.sandboxes import DOCKER, Kind, here
from tests.unit.tools.context import make_context


def _wheel(folder: Path, name: str, version: str, code: str, *needs: str) -> None:
    """A wheel of one module."""
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": head + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Sets are kept beside the machine's other temporary files; here, beside the test's.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    folder = tmp_path / "wheels"
    folder.mkdir()
    _wheel(folder, "rayleaf", "1.0", "value = 'old'")
    _wheel(folder, "rayleaf", "2.0", "value = 'new'")
    _wheel(folder, "raytree", "1.0", "import rayleaf\nvalue = 'tree of ' + rayleaf.value", "rayleaf<2")
    return folder


async def run(kind: Kind, wheels: Path | None, packages: list[str], code: str) -> Any:
    context = make_context(sandbox=kind, docker=DOCKER, sandbox_packages_dir=wheels)
    input: dict[str, Json] = {"code": code, "packages": list[Json](packages)}
    return (await call_tool(BUILTINS["python.run"], input, context)).output


@here
async def test_a_program_imports_what_it_asks_for_and_what_that_needs(kind: Kind, wheels: Path) -> None:
    output = await run(kind, wheels, ["raytree"], "import raytree; print(raytree.value, raytree.__file__)")
    assert output["stdout"] == "tree of old /run/packages/raytree.py\n", output["stderr"]
    output = await run(kind, wheels, ["rayleaf >= 2"], "import rayleaf; print(rayleaf.value)")
    assert output["stdout"] == "new\n", output["stderr"]
    output = await run(kind, wheels, ["rayleaf==1.0"], "open('/run/packages/x', 'w')")
    assert "Error" in output["stderr"]


@here
async def test_a_wheel_that_is_added_is_found(kind: Kind, wheels: Path) -> None:
    code = "import rayleaf; print(rayleaf.value)"
    assert (await run(kind, wheels, ["rayleaf"], code))["stdout"] == "new\n"
    _wheel(wheels, "rayleaf", "3.0", "value = 'newest'")
    assert (await run(kind, wheels, ["rayleaf"], code))["stdout"] == "newest\n"


@pytest.mark.parametrize(
    ("packages", "code"),
    [
        (["rayleaf==9"], "PACKAGES_REFUSED"),
        (["no-such-thing-here"], "PACKAGES_REFUSED"),
        (["raytree", "rayleaf==2.0"], "PACKAGES_REFUSED"),
        (["--index-url=http://example.com"], "PACKAGES_INVALID"),
        (["-r/etc/passwd"], "PACKAGES_INVALID"),
        (["/etc/passwd"], "PACKAGES_INVALID"),
        (["a @ https://example.com/a.whl"], "PACKAGES_INVALID"),
        (["git+https://example.com/a"], "PACKAGES_INVALID"),
        (["a; python_version > '3'"], "PACKAGES_INVALID"),
        (["a"] * 65, "PACKAGES_INVALID"),
    ],
)
async def test_what_the_folder_can_t_give_is_refused(packages: list[str], code: str, wheels: Path) -> None:
    with pytest.raises(RayloomError) as error:
        await run("bubblewrap", wheels, packages, "print(1)")
    assert error.value.code == code
    assert not list(wheels.parent.glob("rayloom-packages-*/new-*"))


async def test_packages_are_refused_where_nobody_has_set_them_up() -> None:
    with pytest.raises(RayloomError, match="RAYLOOM_SANDBOX_PACKAGES_DIR") as error:
        await run("bubblewrap", None, ["rayleaf"], "print(1)")
    assert (error.value.code, error.value.error_class) == ("PACKAGES_REFUSED", "refused")
    settings = DOCKER.model_copy(update={"image": "somebody/else"})
    context = make_context(sandbox="docker", docker=settings, sandbox_packages_dir=Path("/"))
    with pytest.raises(RayloomError, match="an image of your own"):
        await call_tool(BUILTINS["python.run"], {"code": "", "packages": ["a"]}, context)
