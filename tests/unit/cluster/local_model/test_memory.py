"""How much memory there is: the least of what the machine and the cgroups say."""

from __future__ import annotations

from pathlib import Path

from rayloom.cluster.local_model.memory import available_bytes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    2000000 kB\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_it_is_the_least_of_machine_and_cgroup(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert available_bytes(proc, groups) is None
    write(proc, meminfo=MEMINFO)
    assert available_bytes(proc, groups) == 2_048_000_000
    write(groups, memory__max="max\n", memory__current="1", memory__stat="")
    assert available_bytes(proc, groups) == 2_048_000_000
    write(groups, memory__max="1000\n", memory__current="900", memory__stat="anon 1\ninactive_file 50\n")
    assert available_bytes(proc, groups) == 150


def test_the_first_version_of_cgroups_counts_as_well(tmp_path: Path) -> None:
    write(
        tmp_path / "cgroup" / "memory",
        memory__limit_in_bytes="1000",
        memory__usage_in_bytes="990",
        memory__stat="inactive_file 1\ntotal_inactive_file 20\n",
    )
    assert available_bytes(tmp_path / "proc", tmp_path / "cgroup") == 30
