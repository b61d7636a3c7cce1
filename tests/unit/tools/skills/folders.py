"""Skills as their authors write them, made for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

GOOD = """---
name: word-count
description: Counts words. Use when somebody asks how long a text is.
---
# Counting

Run `scripts/count.py` with the text on stdin.
"""
FILES: Mapping[str, str] = {
    "SKILL.md": GOOD,
    "scripts/count.py": "import sys\nprint(len(sys.stdin.read().split()), *sys.argv[1:])\n",
    "references/words.md": "What a word is.\n",
}


def write(folder: Path, files: Mapping[str, str] = FILES) -> Path:
    """A folder with these files."""
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def zipped(files: Mapping[str, str | bytes] = FILES, *, prefix: str = "") -> bytes:
    """A zip with these files."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(prefix + path, text)
    return held.getvalue()
