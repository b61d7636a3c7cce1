"""What must not be imported too early, or not by everybody."""

from __future__ import annotations

import subprocess
import sys

STARTED = (
    "rayloom.actors.singletons",
    "rayloom.actors.mcp_actor",
    "rayloom.actors.scheduler_actor",
    "rayloom.cluster.planning_models",
    "rayloom.cluster.ports",
    "rayloom.serve.deployment",
)
"""What `up` imports to start what runs elsewhere."""
MADE_OF = (
    "mcp",
    "networkx",
    "jinja2",
    "rayloom.actors.scheduler",
    "rayloom.actors.worker",
    "rayloom.actors.tokens",
    "rayloom.serve.app",
)
"""What only the processes need that it starts; seconds of CPU, before anything has begun."""


def _imported(modules: tuple[str, ...], looked_for: tuple[str, ...]) -> list[str]:
    code = f"import sys, {', '.join(modules)}; print(*[name for name in {looked_for!r} if name in sys.modules])"
    return subprocess.check_output([sys.executable, "-c", code], text=True, timeout=300).split()


def test_ray_is_not_imported_before_its_environment_is_set() -> None:
    # It reads that when it is imported: where it listens, for one, which would be on every address.
    assert _imported(("rayloom.cluster.cli", "rayloom.cluster.up", "rayloom.cluster.bringup"), ("ray",)) == []


def test_who_starts_the_singletons_and_the_api_imports_nothing_of_what_they_are_made_of() -> None:
    assert _imported(STARTED, MADE_OF) == []
    # So they are found by this where they are used.
    assert _imported(("rayloom.actors.scheduler", "rayloom.serve.app"), MADE_OF[:2]) == ["mcp", "networkx"]
