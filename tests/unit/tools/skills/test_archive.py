"""Zips of Skills: those that archivers make, and those that somebody made to harm."""

from __future__ import annotations

import io
import stat
import struct
import zipfile

import pytest

from rayloom.tools.skills import archive
from rayloom.tools.skills.archive import from_zip
from rayloom.tools.skills.front_matter import InvalidSkill
from rayloom.tools.skills.skill import MAX_BYTES, MAX_FILE_BYTES, MAX_FILES
from tests.unit.tools.skills.folders import FILES, GOOD, zipped


def entry(name: str, *, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def of(*entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as made:
        for info, data in entries:
            made.writestr(info, data, compress_type=method)
    return held.getvalue()


def faults(data: bytes) -> tuple[str, ...]:
    with pytest.raises(InvalidSkill) as caught:
        from_zip(data)
    return caught.value.faults


def test_what_is_in_the_folder_is_taken() -> None:
    files, folder = from_zip(zipped())
    assert files == {path: text.encode() for path, text in FILES.items()}
    assert folder is None


def test_the_folder_itself_is_taken_too() -> None:
    files, folder = from_zip(zipped(prefix="word-count/"))
    assert sorted(files) == sorted(FILES)
    assert folder == "word-count"


def test_what_systems_leave_in_archives_is_left_out() -> None:
    left = {"__MACOSX/word-count/._SKILL.md": "x", "word-count/.DS_Store": "x", "word-count/.git/config": "x"}
    ours = {f"word-count/{path}": text for path, text in FILES.items()}
    files, folder = from_zip(zipped({**ours, **left}))
    assert sorted(files) == sorted(FILES)
    assert folder == "word-count"


def test_folders_have_entries_too() -> None:
    files, _ = from_zip(of((entry("scripts/", mode=stat.S_IFDIR | 0o755), b""), ("SKILL.md", GOOD.encode())))
    assert list(files) == ["SKILL.md"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/passwd",
        "~/evil",
        "..\\evil",
        "C:\\evil",
        "a/./../b",
        "x" * 300,
        "a\nb",
        "../.git/x",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(name: str) -> None:
    assert len(faults(of(("SKILL.md", GOOD.encode()), (entry(name), b"x")))) == 1


def test_a_name_that_is_cut_off_at_a_nul_is_refused() -> None:
    data = of((entry("safe.md_evil"), b"x")).replace(b"safe.md_evil", b"safe.md\0evil")
    assert "control characters" in faults(data)[0]


def test_paths_are_safe_when_folders_are_no_files() -> None:
    assert "both a file and a folder" in faults(of(("a", b"x"), ("a/b", b"y")))[0]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (stat.S_IFLNK, "symbolic link"),
        (stat.S_IFIFO, "neither a file"),
        (stat.S_IFCHR, "neither a file"),
        (stat.S_IFSOCK, "neither a file"),
    ],
)
def test_only_files_and_folders_are_taken(kind: int, said: str) -> None:
    assert said in faults(of(("SKILL.md", GOOD.encode()), (entry("x", mode=kind | 0o777), b"/etc/passwd")))[0]


def test_a_file_that_is_in_it_twice_is_refused() -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = of(("SKILL.md", b"a"), ("SKILL.md", b"b"))
    assert faults(data) == ("SKILL.md: is in it twice",)


def test_the_same_in_two_spellings_is_refused() -> None:
    assert faults(of(("a/b", b"a"), ("a//b", b"b"))) == ("a/b: is in it twice",)


def test_a_bomb_of_one_file_is_stopped() -> None:
    data = of(("SKILL.md", GOOD.encode()), ("bomb", bytes(MAX_FILE_BYTES + 1)))
    assert len(data) < 100_000
    assert faults(data) == (f"bomb: has more than {MAX_FILE_BYTES:,} bytes",)


def test_a_bomb_of_many_files_is_stopped() -> None:
    part = bytes(MAX_BYTES // 8)
    assert "all files together" in faults(of(*((f"bomb{at}", part) for at in range(9))))[0]


def test_a_bomb_that_lies_about_its_size_is_stopped() -> None:
    size = 1024 * 1024
    data = of(("bomb", bytes(size)))
    assert data.count(struct.pack("<L", size)) == 2  # the local header and the directory
    assert faults(data.replace(struct.pack("<L", size), struct.pack("<L", 10)))


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    many = of(*((f"f{at}", b"") for at in range(MAX_FILES + 1)))
    assert faults(many) == (f"more than {MAX_FILES:,} files",)
    monkeypatch.setattr(archive, "MAX_ENTRIES", 5)
    assert faults(many) == ("more than 5 entries",)


def test_every_fault_is_told() -> None:
    data = of((entry("../a"), b""), (entry("/b"), b""), (entry("c", mode=stat.S_IFLNK), b"x"))
    assert len(faults(data)) == 3


def test_what_needs_a_password_is_refused() -> None:
    data = bytearray(of(("SKILL.md", GOOD.encode())))
    directory = data.index(b"PK\x01\x02")
    data[6] |= 1
    data[directory + 8] |= 1
    assert "is encrypted" in faults(bytes(data))[0]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(method: int) -> None:
    assert "another method than deflate" in faults(of(("SKILL.md", GOOD.encode()), method=method))[0]


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"not a zip", zipped()[:-30], zipped()[:100], zipped().replace(b"PK\x03\x04", b"PK\x00\x00")],
    ids=["nothing", "two letters", "text", "its end is missing", "its beginning", "other signatures"],
)
def test_what_is_no_zip_is_refused(data: bytes) -> None:
    assert faults(data)


def test_a_harmed_content_is_refused() -> None:
    data = bytearray(of(("SKILL.md", GOOD.encode()), method=zipfile.ZIP_STORED))
    data[60] ^= 0xFF
    assert "CRC" in faults(bytes(data))[0]
