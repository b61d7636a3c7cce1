"""Waiting until the machine has nothing to do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

IDLE = 0.85
LOOK_S = 1.0
LOOKS = 4
"""So many looks in a row must find it idle. Ray ends a worker that has been idle for a second: after fewer looks some
of them would still be there and some not, and a figure would depend on chance."""
AT_MOST_S = 60.0


def settle() -> None:
    """Wait until the processors have been idle for LOOKS seconds; on a machine that never is, go on after a minute."""
    end = time.monotonic() + AT_MOST_S
    idle_looks = 0
    while idle_looks < LOOKS and time.monotonic() < end:
        before = _idle_s()
        Event().wait(LOOK_S)
        is_idle = _idle_s() - before >= IDLE * LOOK_S * (os.cpu_count() or 1)
        idle_looks = idle_looks + 1 if is_idle else 0


def _idle_s() -> float:
    """Seconds that all processors together have been idle since the machine started: proc(5), /proc/stat."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
