"""Where tests keep the small model between two runs; as a program (``python -m``) it puts it there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from rayloom.cluster.local_model.catalogue import SMALL
from rayloom.cluster.local_model.install import Shelf

KEPT: Final = Path(__file__).resolve().parents[3] / "build" / "models"

if __name__ == "__main__":
    asyncio.run(Shelf(KEPT).install(SMALL, print))
