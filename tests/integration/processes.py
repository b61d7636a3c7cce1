"""The processes of one instance, known by a mark in their environment, their folder, or their parents."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "RL_TEST_INSTANCE"
_AT_WORK = re.compile(r"ray::(?!rayloom:)([a-z]|REASONING|CODE_GEN)")
"""How the title of a worker begins that runs an attempt: with its tool, or what a model does. Actors show a class."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was seen. ``born`` tells it from a later one with the same number."""

    pid: int
    parent: int
    born: int
    title: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        now = _look(self.pid)
        return now is not None and now.born == self.born

    @property
    def goes_on(self) -> bool:
        """Whether it still runs under the title that it had: of a worker, whether it still runs that Ray task."""
        now = _look(self.pid)
        return now is not None and (now.born, now.title) == (self.born, self.title)

    @property
    def is_at_work(self) -> bool:
        """Whether it was a Ray worker that ran an attempt."""
        return _AT_WORK.match(self.title) is not None

    def rss_bytes(self) -> int:
        """Its resident memory; 0 when it has ended."""
        with suppress(OSError):
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return 0


def _look(pid: int) -> Process | None:
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    fields = rest.split()
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), int(fields[19]), title)


def _is_marked(pid: int, folder: str) -> bool:
    needle = folder.encode()
    for name in ("environ", "cmdline"):
        with suppress(OSError):
            if needle in Path(f"/proc/{pid}/{name}").read_bytes():
                return True
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/cwd").readlink()).startswith(folder)
    return False


def processes_of(folder: Path) -> list[Process]:
    """Every living process that belongs to the instance in ``folder``, and all that they started."""
    seen = [found for entry in Path("/proc").iterdir() if entry.name.isdigit() and (found := _look(int(entry.name)))]
    ours = {each.pid for each in seen if each.pid != os.getpid() and _is_marked(each.pid, str(folder))}
    while more := {each.pid for each in seen if each.parent in ours} - ours:
        ours |= more
    return [each for each in seen if each.pid in ours]
