"""What the guardian of machines elsewhere counts, and that it needs nothing more once a program runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayloom.tools.paths import workspace_path
from rayloom.tools.sandbox import guardian, remote_run
from rayloom.tools.sandbox.leftovers import MAX_HEAD_BYTES, Leftovers

MIB = 1024 * 1024


def kernel_says(meminfo: Path, shared_mb: int) -> None:
    meminfo.write_text(f"MemTotal:  999 kB\nShmem:  {shared_mb * 1024} kB\nShmemHugePages:  999 kB\n")


def test_shared_memory_counts_from_its_beginning_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "theirs", list)
    meminfo = tmp_path / "meminfo"
    kernel_says(meminfo, 100)
    memory = guardian.Memory(8 * MIB, str(meminfo))
    for shared_mb, is_over in ((100, False), (108, False), (109, True), (50, False)):
        kernel_says(meminfo, shared_mb)
        assert memory.is_over() is is_over


def test_what_is_not_shared_counts_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    kernel_says(meminfo, 0)
    monkeypatch.setattr(guardian, "theirs", lambda: [1, 2])
    held = {"RssAnon": 3 * MIB, "Pss_Anon": 2 * MIB, "Shmem": 0}
    monkeypatch.setattr(guardian, "sizes", lambda _path, names: held[names])
    memory = guardian.Memory(5 * MIB, str(meminfo))
    assert not memory.is_over(), "half of it is in both"
    held["Shmem"] = 2 * MIB
    assert memory.is_over()


def test_where_the_kernel_is_not_ours_alone_the_folders_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "FOLDERS", (str(tmp_path),))
    memory = guardian.Memory(MIB, "")
    assert memory.before > 0


def test_a_path_that_takes_more_room_than_any_may_is_left_out(tmp_path: Path) -> None:
    longest = "/".join(["\U0001f333" * 63] * 8)
    assert workspace_path(longest) == longest
    for path in (longest, b"/".join([b"\xff" * 200] * 10).decode(errors="surrogateescape")):
        place = tmp_path / path
        place.parent.mkdir(parents=True)
        place.write_bytes(b"here")
    heads: list[bytes] = []
    finds = Leftovers(lambda letter, data: heads.append(data) if letter == b"f" else None, {}, 9, 99)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        finds.walk(folder, "", 1)
    finally:
        os.close(folder)
    assert [json.loads(head)["path"] for head in heads] == [longest]
    assert len(heads[0]) <= MAX_HEAD_BYTES
    assert len(finds.left_out) == 1


_LATE = """
import sys
g = {"__name__": "guardian"}
exec(sys.argv[1], g)
before = set(sys.modules)
sys.path.clear()
g["kernel_count"]()
g["theirs"]()
g["kernel_kills"]()
g["Memory"](0, "/proc/meminfo").is_over()
g["sizes"]("/proc/self/smaps_rollup", "Pss_Anon")
g["put_files"]([], memoryview(b""))
finds = g["Leftovers"](lambda letter, data: None, {}, 9, 9)
import os
finds.walk(os.open(sys.argv[2], os.O_RDONLY), "", 1)
g["json"].dumps({"exit_code": 1, "oom": False, "left_out": {"count": 1, "first": ["\\udc80\\xe4"]}}).encode()
assert g["LIBC"].unshare(-1) != 0
print(sorted(set(sys.modules) - before), len(finds.left_out))
"""


def test_nothing_is_loaded_once_a_program_may_have_written_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LATE, remote_run._guardian(), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout == "[] 0\n"
