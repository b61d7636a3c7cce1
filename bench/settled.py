"""Waiting until the machine has nothing to do."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event

IDLE = 0.85
LOOK_S = 1.0
AT_MOST_S = 30.0
REST_S = 3.0
"""Ray ends a worker that has been idle for a second: without a rest some of them would still be there and some not, and
a figure would depend on chance."""


def settle() -> None:
    """Wait until the processors have been idle for a second, and three more.

    On a machine that never is idle, go on after half a minute, and the three seconds.
    """
    end = time.monotonic() + AT_MOST_S
    while time.monotonic() < end:
        before = _idle_s()
        Event().wait(LOOK_S)
        if _idle_s() - before >= IDLE * LOOK_S * (os.cpu_count() or 1):
            break
    Event().wait(REST_S)


def _idle_s() -> float:
    """Seconds that all processors together have been idle since the machine started: proc(5), /proc/stat."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
