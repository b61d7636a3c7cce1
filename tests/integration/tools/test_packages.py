"""Programs that import what a folder of wheels gives, and what no folder gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayloom.dag.errors import RayloomError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox.tidy import tidy
from rayloom.tools.settings import ToolSettings
from tests.integration.tools.sandboxes import DOCKER, Kind, here
from tests.integration.tools.wheels import make_wheel, store_of_its_own
from tests.unit.tools.context import make_context


@pytest.fixture
def wheels() -> Iterator[Path]:
    """A folder of wheels: two versions of a package, and one that needs the older."""
    with store_of_its_own() as place:
        folder = place / "wheels"
        folder.mkdir()
        make_wheel(folder, "rayleaf", "1.0", "value = 'old'")
        make_wheel(folder, "rayleaf", "2.0", "value = 'new'")
        make_wheel(folder, "raytree", "1.0", "import rayleaf\nvalue = 'tree of ' + rayleaf.value", "rayleaf<2")
        yield folder


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
    make_wheel(wheels, "rayleaf", "3.0", "value = 'newest'")
    assert (await run(kind, wheels, ["rayleaf"], code))["stdout"] == "newest\n"


async def test_what_a_killed_installer_left_is_nobody_s_hindrance(wheels: Path) -> None:
    code = "import rayleaf; print(rayleaf.value)"
    await run("bubblewrap", wheels, ["rayleaf"], code)
    (made,) = (each for each in wheels.parent.glob("rayloom-packages-*/*") if each.is_dir())
    half = made.with_suffix(".new")
    made.rename(half)
    (half / "rayleaf.py").write_text("value = 'ha")
    assert (await tidy(ToolSettings(sandbox="bubblewrap"))) == {"half-made packages": 1}
    assert not half.exists()
    (half / "packages").mkdir(parents=True)
    assert (await run("bubblewrap", wheels, ["rayleaf"], code))["stdout"] == "new\n"
    assert not half.exists()


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
    assert not list(wheels.parent.glob("rayloom-packages-*/*.new"))


async def test_packages_are_refused_where_nobody_has_set_them_up() -> None:
    with pytest.raises(RayloomError, match="RAYLOOM_SANDBOX_PACKAGES_DIR") as error:
        await run("bubblewrap", None, ["rayleaf"], "print(1)")
    assert (error.value.code, error.value.error_class) == ("PACKAGES_REFUSED", "refused")
    settings = DOCKER.model_copy(update={"image": "somebody/else"})
    context = make_context(sandbox="docker", docker=settings, sandbox_packages_dir=Path("/"))
    with pytest.raises(RayloomError, match="an image of your own"):
        await call_tool(BUILTINS["python.run"], {"code": "", "packages": ["a"]}, context)
