"""Folders of Skills, and the links and devices that may lie in them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from rayloom.tools.skills import folder as folders
from rayloom.tools.skills.folder import from_folder
from rayloom.tools.skills.front_matter import InvalidSkill
from rayloom.tools.skills.skill import MAX_FILE_BYTES
from tests.unit.tools.skills.folders import FILES, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "skills" / "word-count")
    return tmp_path / "skills"


def faults(root: Path, path: str = "word-count") -> tuple[str, ...]:
    with pytest.raises(InvalidSkill) as caught:
        from_folder(root, path)
    return caught.value.faults


@pytest.mark.parametrize("path", ["word-count", "word-count/", "./word-count", "{root}/word-count"])
def test_a_folder_is_read(root: Path, path: str) -> None:
    files, name = from_folder(root, path.format(root=root))
    assert files == {path: text.encode() for path, text in FILES.items()}
    assert name == "word-count"


def test_a_checkout_is_a_folder_without_its_history(root: Path) -> None:
    write(root / "word-count", {".git/config": "[core]", "sub/.git": "gitdir: ../.git", "__pycache__/a.pyc": "x"})
    assert sorted(from_folder(root, "word-count")[0]) == sorted(FILES)
    write(root / "repository" / "skills" / "deep", {"SKILL.md": "x", ".hidden": "kept"})
    assert sorted(from_folder(root, "repository/skills/deep")[0]) == [".hidden", "SKILL.md"]


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../other",
        "word-count/../../other",
        "/etc",
        "{root}/../other",
        "{root}-not",
        ".",
        "{root}",
        "a\0b",
        "nowhere",
    ],
)
def test_only_what_lies_below_the_root_can_be_named(root: Path, path: str) -> None:
    write(root.parent / "other")
    write(root.parent / "skills-not")
    assert len(faults(root, path.format(root=root))) == 1


def test_no_link_leads_out_on_the_way(root: Path) -> None:
    write(root.parent / "other")
    (root / "link").symlink_to(root.parent / "other")
    (root / "up").symlink_to("..")
    assert "link leads to it" in faults(root, "link")[0]
    assert "link leads to it" in faults(root, "up/other")[0]


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(root)
    assert from_folder(tmp_path / "elsewhere", str(root / "word-count"))[1] == "word-count"


def test_links_in_it_are_refused_wherever_they_lead(root: Path) -> None:
    skill = root / "word-count"
    (skill / "secret").symlink_to("/etc/passwd")
    (skill / "etc").symlink_to("/etc")
    (skill / "inside").symlink_to("SKILL.md")
    (skill / "nowhere").symlink_to("nothing")
    assert faults(root) == tuple(f"{name}: is a symbolic link" for name in ("etc", "inside", "nowhere", "secret"))


def test_what_is_no_file_is_refused_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "word-count" / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(root / "word-count", os.O_DIRECTORY)
        try:
            listening.bind(f"/proc/self/fd/{here}/socket")
        finally:
            os.close(here)
        assert [fault.split(":")[0] for fault in faults(root)] == ["pipe", "socket"]


def test_names_that_no_workspace_takes_are_refused(root: Path) -> None:
    (root / "word-count" / "a\\b").write_text("x")
    (root / "word-count" / "c\nd").write_text("x")
    Path(os.fsdecode(os.fsencode(root / "word-count") + b"/e\xff")).write_text("x")
    told = faults(root)
    assert len(told) == 3
    assert "\n".join(told).encode()


def test_sizes_and_counts_are_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (root / "word-count" / "large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert faults(root) == (f"large: has more than {MAX_FILE_BYTES:,} bytes",)
    (root / "word-count" / "large").unlink()
    for name, limit, said in (
        ("MAX_BYTES", 10, "all files"),
        ("MAX_FILES", 2, "more than 2 files"),
        ("MAX_ENTRIES", 2, "more than 2 entries"),
        ("MAX_DEPTH", 0, "deeper"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(folders, name, limit)
            assert said in "\n".join(faults(root)), name
