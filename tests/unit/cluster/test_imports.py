"""What must not be imported too early."""

from __future__ import annotations

import subprocess
import sys


def test_ray_is_not_imported_before_its_environment_is_set() -> None:
    # It reads that when it is imported: where it listens, for one, which would be on every address.
    code = (
        "import sys, rayloom.cluster.cli, rayloom.cluster.up, rayloom.cluster.bringup; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0
