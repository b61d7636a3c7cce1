"""What `rayloom up` itself has to report: on the terminal, and kept in ``RAYLOOM_HOME/logs/up.log``."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from rayloom.cluster.home import unwritable

MAX_BYTES: Final = 4 * 1024 * 1024


class Logbook:
    """Both places, until ``close``; of this process only: Ray keeps what its own processes report."""

    def __init__(self, folder: Path) -> None:
        file = RotatingFileHandler(folder / "up.log", maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("rayloom: %(message)s"))
        self._handlers: tuple[logging.Handler, ...] = (file, terminal)
        for handler in self._handlers:
            logging.getLogger("rayloom").addHandler(handler)

    def close(self) -> None:
        """Write no more."""
        for handler in self._handlers:
            logging.getLogger("rayloom").removeHandler(handler)
            handler.close()


def open_logbook(folder: Path) -> Logbook:
    """Begin to keep what this process reports. Raises HomeError when the file can't be written."""
    try:
        return Logbook(folder)
    except OSError as error:
        raise unwritable(folder / "up.log", error) from None
