"""One hostile program, and what must come of it in every kind of sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rayloom.dag.values import Json

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(what, *names):
    "Whether something can be done at all; refusals of any kind are what we want."
    try:
        found = what()
    except (OSError, ValueError, PermissionError, MemoryError, RuntimeError) as error:
        print("refused:", type(error).__name__)
        return
    if isinstance(found, int) and found < 0:
        print("refused:", ctypes.get_errno())
    else:
        print("ESCAPED", *names, found)

"""
"""Before each Python program: what succeeds that must not says ESCAPED, which no output may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """``code`` is Python with `PRELUDE`, or shell where it begins with ``#!sh``.

    ``verdict``: fields of the result that must be so. ``exit_codes``: those that are right. ``says``: a pattern that
    the standard output must match. ``files``: the names of those that come back, where that matters. ``within_s``: when
    it must be over. On its standard input it finds the path of a file of the host, the pid of a process and the port of
    a server there.
    """

    name: str
    code: str
    verdict: Mapping[str, Json] = field(default_factory=dict)
    exit_codes: tuple[int, ...] = (0,)
    says: str = ""
    limits: Mapping[str, Json] = field(default_factory=dict)
    files: tuple[str, ...] | None = None
    within_s: float = 60
