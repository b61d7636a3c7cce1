"""How a file of a Skill is run: by which interpreter, as its name and first line say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from rayloom.dag.errors import UserError
from rayloom.tools.sandbox.sandbox import Program

_BY_ENDING: Final = {".py": "python3", ".sh": "sh", ".bash": "bash", ".js": "node", ".mjs": "node", ".cjs": "node"}
# `#!/usr/bin/env -S python3 -u` and `#!/bin/bash`: what is started, without its options.
_FIRST_LINE: Final = re.compile(rb"#!\s*(?:\S*/env\s+(?:-\S+\s+)*)?(?:\S*/)?([A-Za-z0-9_.+-]+)")
_PYTHON: Final = re.compile(r"python(3(\.\d+)?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A program whose source starts the script, in place of itself: so its input and its end are the script's own."""

    program: Program
    source: str


def start_of(path: str, data: bytes, args: Sequence[str]) -> Start:
    """How to start a script that lies at ``path`` below the working directory.

    Raises UserError (``SCRIPT_UNSUPPORTED``) where nothing says by what it is run.
    """
    interpreter = _interpreter(path, data)
    if _PYTHON.fullmatch(interpreter):
        # Whichever Python the sandbox has: that is the one that runs this.
        source = f"import os, sys\nos.execv(sys.executable, [sys.executable, *{[path, *args]!r}])\n"
        return Start(program="python", source=source)
    return Start(program="shell", source=f"exec {shlex.join([interpreter, path, *args])}\n")


def _interpreter(path: str, data: bytes) -> str:
    told = _FIRST_LINE.match(data[:256])
    if told is not None:
        return told[1].decode()
    known = _BY_ENDING.get(PurePosixPath(path).suffix.lower())
    if known is None:
        endings = ", ".join(_BY_ENDING)
        raise UserError(
            "SCRIPT_UNSUPPORTED", f"/script: {path} is no script: it has no #! line, and ends in none of {endings}"
        )
    return known
