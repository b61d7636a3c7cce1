"""Programs that import what a package index gives: a real one, on the loopback."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.dag.errors import RayloomError
from rayloom.dag.values import Json
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from tests.integration.tools.sandboxes import DOCKER, Kind, eventually, here
from tests.integration.tools.wheels import Index, make_source, make_wheel, serving, store_of_its_own
from tests.unit.tools.context import KeptLog, make_context

CODE = "import rayleaf; print(rayleaf.value)"


@pytest.fixture
def index() -> Iterator[Index]:
    """An index with a package, another that needs it, and one that would have to be built."""
    with store_of_its_own() as place:
        folder = place / "served"
        folder.mkdir()
        make_wheel(folder, "rayleaf", "1.0", "value = 'old'")
        make_wheel(folder, "rayleaf", "2.0", "value = 'new'")
        make_wheel(folder, "raytree", "1.0", "import rayleaf\nvalue = 'tree of ' + rayleaf.value", "rayleaf<2")
        make_source(folder, "raysource", "1.0", f"open({str(place / 'built')!r}, 'w')\n")
        with serving(folder) as index:
            yield index


def left_half_made(index: Index) -> list[Path]:
    return list(index.folder.parent.glob("rayloom-packages-*/*.new"))


async def run(
    index: Index, packages: list[str], code: str = CODE, *, kind: Kind = "bubblewrap", **settings: Any
) -> tuple[Any, list[str]]:
    """The output, and the lines of the task's log that are ours."""
    log = KeptLog()
    settings = {"sandbox_packages_index_url": SecretStr(index.url), **settings}
    context = make_context(log=log, sandbox=kind, docker=DOCKER, **settings)
    input: dict[str, Json] = {"code": code, "packages": list[Json](packages)}
    output = (await call_tool(BUILTINS["python.run"], input, context)).output
    return output, [line for stream, line in log.lines if stream == "tool"]


@here
async def test_a_program_imports_what_the_index_gives_and_is_told_what_that_was(kind: Kind, index: Index) -> None:
    output, lines = await run(index, ["raytree"], "import raytree; print(raytree.value)", kind=kind)
    assert output["stdout"] == "tree of old\n", output
    digests = {
        each: hashlib.sha256((index.folder / f"{each}-1.0-py3-none-any.whl").read_bytes()).hexdigest()
        for each in ("rayleaf", "raytree")
    }
    assert lines == [f"package {name}==1.0 sha256:{digest}" for name, digest in digests.items()]


async def test_a_set_is_had_once_however_many_ask_at_once(index: Index) -> None:
    outputs = await asyncio.gather(*(run(index, ["rayleaf==1.0"]) for _ in range(4)))
    assert [output["stdout"] for output, _ in outputs] == ["old\n"] * 4
    assert (await run(index, ["rayleaf==1.0"]))[1] == outputs[0][1]
    assert index.asked.count("/files/rayleaf-1.0-py3-none-any.whl") == 1
    assert not left_half_made(index)


async def test_nothing_is_built(index: Index) -> None:
    with pytest.raises(RayloomError, match="does not give raysource") as error:
        await run(index, ["raysource"])
    assert error.value.code == "PACKAGES_REFUSED"
    assert not (index.folder.parent / "built").exists()


@pytest.mark.parametrize("place", ["index", "folder"])
@pytest.mark.parametrize("way", ["file", "http", "git", "wheel"])
async def test_what_a_wheel_names_by_an_address_is_neither_fetched_nor_built(
    place: str, way: str, index: Index
) -> None:
    addresses = {
        "file": f"file://{index.folder}/raysource-1.0.tar.gz",
        "http": index.url.replace("/simple", "/files/raysource-1.0.tar.gz"),
        "git": "git+" + index.url.replace("/simple", "/files/raysource"),
        "wheel": index.url.replace("/simple", "/files/raysource-1.0-py3-none-any.whl"),
    }
    folder = index.folder.parent / "own"
    folder.mkdir()
    make_wheel(index.folder, "raysource", "1.0", "")
    needs = ("rayleaf", f"raysource @ {addresses[way]}")
    make_wheel(folder if place == "folder" else index.folder, "rayevil", "1.0", "", *needs)
    own: dict[str, Any] = (
        {"sandbox_packages_dir": folder, "sandbox_packages_index_url": SecretStr("")} if place == "folder" else {}
    )
    make_wheel(folder, "rayleaf", "1.0", "")
    with pytest.raises(RayloomError, match="rayevil wants raysource from an address of its own") as error:
        await run(index, ["rayevil"], **own)
    assert error.value.code == "PACKAGES_REFUSED"
    assert not [path for path in index.asked if path.startswith("/files/raysource")]
    assert not (index.folder.parent / "built").exists()
    assert not left_half_made(index)


async def test_wheels_of_the_folder_are_taken_beside_those_of_the_index(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    make_wheel(folder, "rayown", "1.0", "import rayleaf\nvalue = 'own of ' + rayleaf.value", "rayleaf")
    output, _ = await run(index, ["rayown"], "import rayown; print(rayown.value)", sandbox_packages_dir=folder)
    assert output["stdout"] == "own of new\n", output


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(404, "PACKAGES_REFUSED", False), (403, "PACKAGES_REFUSED", False), (500, "PACKAGES_FAILED", True)],
)
async def test_an_index_that_fails_is_not_a_package_that_is_not_there(
    status: int, code: str, retryable: bool, index: Index
) -> None:
    index.status = status
    with pytest.raises(RayloomError) as error:
        await run(index, ["rayleaf"])
    assert (error.value.code, error.value.retryable) == (code, retryable), error.value
    assert not left_half_made(index)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "PACKAGES_FAILED"), (502, "PACKAGES_FAILED"), (429, "PACKAGES_FAILED"),
                         (403, "PACKAGES_REFUSED"), (404, "PACKAGES_REFUSED")],
)  # fmt: skip
async def test_a_wheel_that_does_not_come_is_asked_for_again_later(status: int, code: str, index: Index) -> None:
    index.status, index.failing = status, "/files/"
    with pytest.raises(RayloomError) as error:
        await run(index, ["rayleaf"])
    assert error.value.code == code, error.value
    assert not left_half_made(index)


@pytest.mark.parametrize("digest", ["md5", "sha512", ""])
async def test_another_digest_than_ours_is_told_as_what_it_is(digest: str, index: Index) -> None:
    index.digest = digest
    _, lines = await run(index, ["rayleaf==1.0"])
    data = (index.folder / "rayleaf-1.0-py3-none-any.whl").read_bytes()
    known = digest or "sha256"
    told = f" {known}:{hashlib.new(known, data).hexdigest()}"
    if not digest and metadata.version("pip").startswith(("22.", "23.0")):
        # Where the index names no digest, pip makes one since 23.1 (Debian 12 has 23.0.1).
        told = ""
    assert lines == [f"package rayleaf==1.0{told}"]


async def test_an_index_that_is_away_is_asked_again_later(index: Index) -> None:
    gone = Index(index.folder, url="http://127.0.0.1:1/simple")
    with pytest.raises(RayloomError) as error:
        await run(gone, ["rayleaf"])
    assert error.value.code == "PACKAGES_FAILED"


async def test_a_password_opens_the_index_and_shows_nowhere(index: Index) -> None:
    index.password = "s3cret-of-the-index"
    with_password = SecretStr(index.url.replace("//", f"//x:{index.password}@"))
    output, _ = await run(index, ["rayleaf"], sandbox_packages_index_url=with_password)
    assert output["stdout"] == "new\n"
    with pytest.raises(RayloomError) as error:
        await run(index, ["rayleaf==9"], sandbox_packages_index_url=with_password)
    assert "rayleaf==9" in error.value.message
    assert index.password not in error.value.message
    told = [path.read_text() for path in index.folder.parent.glob("rayloom-packages-*/*.json")]
    assert told
    assert not any(index.password in each for each in told)


async def test_what_is_too_large_is_refused_and_leaves_nothing(index: Index) -> None:
    make_wheel(index.folder, "raybomb", "1.0", "", data=bytes(64 * 1024 * 1024))
    assert (index.folder / "raybomb-1.0-py3-none-any.whl").stat().st_size < 1024 * 1024
    with pytest.raises(RayloomError, match="more than 8 MiB") as error:
        await run(index, ["raybomb"], sandbox_packages_max_bytes=8 * 1024 * 1024)
    assert error.value.code == "PACKAGES_REFUSED"
    assert not left_half_made(index)


@here
async def test_who_gives_up_leaves_nothing_behind(kind: Kind, index: Index) -> None:
    index.hold = threading.Event()
    running = asyncio.ensure_future(run(index, ["rayleaf"], kind=kind))
    await eventually(lambda: any(path.startswith("/files/") for path in index.asked))
    assert left_half_made(index)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: not left_half_made(index))
    index.hold.set()
    output, _ = await run(index, ["rayleaf"], kind=kind)
    assert output["stdout"] == "new\n"
