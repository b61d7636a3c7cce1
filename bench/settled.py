"""Waiting until the machine has nothing to do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

IDLE = 0.85
LOOK_S = 1.0
AT_MOST_S = 30.0


def settle() -> None:
    """Wait until the processors have been idle for a second; on a machine that never is, go on after half a minute."""
    end = time.monotonic() + AT_MOST_S
    while time.monotonic() < end:
        before = _idle_s()
        Event().wait(LOOK_S)
        if _idle_s() - before >= IDLE * LOOK_S * (os.cpu_count() or 1):
            return


def _idle_s() -> float:
    """Seconds that all processors together have been idle since the machine started: proc(5), /proc/stat."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
