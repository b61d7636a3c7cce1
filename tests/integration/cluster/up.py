"""A `rayloom up` as a process, with a stand-in for Ray and Serve, that a test can talk to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.integration.ports import free_ports

PROGRAM = Path(__file__).with_name("upping.py")


class Up:
    """A `rayloom up` that a test can talk to."""

    stdout: int = subprocess.PIPE

    def __init__(self, home: Path, how: str = "serve", **environ: str) -> None:
        self.home = home
        port, dashboard = free_ports(2)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), how],
            stdout=self.stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=home.parent,
            env={
                "PATH": os.environ["PATH"],
                "RAYLOOM_HOME": str(home),
                "RAYLOOM_PORT": str(port),
                "RAYLOOM_RAY_DASHBOARD_PORT": str(dashboard),
                **environ,
            },
            # Whoever runs the tests may be ignoring it, and what is ignored is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def until(self, text: str) -> list[str]:
        """What it says, up to a line with ``text`` in it."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line.rstrip())
            if text in line:
                return lines
        _, errors = self.process.communicate()
        raise AssertionError(f"it never said {text!r} but {lines}; {errors}")

    def end(self) -> tuple[int, list[str], list[str]]:
        """Exit code and the rest of what it says on both streams."""
        try:
            out, errors = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            # The tests after this one shall not find it.
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, (out or "").splitlines(), errors.splitlines()

    def head(self) -> int:
        """The process of the driver, 0 when there is none."""
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):
                command = (status.parent / "cmdline").read_bytes().split(b"\0")
                if b"head" in command and f"\nPPid:\t{self.process.pid}\n" in status.read_text():
                    return int(status.parent.name)
        return 0

    def servers(self) -> list[int]:
        """The processes of PostgreSQL and Redis."""
        head = self.head()
        postmaster = int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        found: set[int] = set()
        for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            # A thread may end meanwhile.
            with suppress(OSError):
                found |= {int(pid) for pid in children.read_text().split()}
        found -= {head}
        assert postmaster in found
        assert len(found) == 2
        return sorted(found)
