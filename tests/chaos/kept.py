"""What is kept of a run that failed: the logs, which would be gone with its rig."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

LOST: Final = "not-copied.txt"
"""Names what could not be copied, with why: something may still write there, or clean up."""


def keep_logs(folder: Path, seed: int) -> Path:
    """Copy the logs of a rig, those of each of its Rays, of its home and of what started them; gives where they are.

    Those of an earlier run with this seed are gone then. Nothing else of the home is copied: it holds keys.
    """
    kept = Path(tempfile.gettempdir()) / f"rlch-logs-{seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(mode=0o700)
    lost: list[str] = []
    # After a power cord there are two sessions; `session_latest` is a link to the second.
    sessions = [each for each in sorted(folder.glob("ray/session_*")) if not each.is_symlink()]
    for source, name in ((folder / "home", "home"), *((each, f"ray/{each.name}") for each in sessions)):
        if (source / "logs").is_dir():
            try:
                shutil.copytree(source / "logs", kept / name / "logs", symlinks=True)
            except OSError as error:
                # It has copied all that it could.
                lost.append(str(error))
    for log in sorted(folder.glob("*.log")):
        shutil.copy(log, kept / log.name)
    if lost:
        (kept / LOST).write_text("\n".join(lost) + "\n")
    return kept
