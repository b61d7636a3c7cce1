"""Which sandbox a setting means."""

from __future__ import annotations

from functools import cache

from rayloom.dag.errors import Refused
from rayloom.tools.sandbox.bubblewrap import Bubblewrap
from rayloom.tools.sandbox.sandbox import Sandbox
from rayloom.tools.sandbox.unsafe_local import UnsafeLocal
from rayloom.tools.settings import SandboxChoice


@cache
def sandbox_for(choice: SandboxChoice) -> Sandbox:
    """The sandbox of this process for a setting; ``probe`` says whether it works here.

    ``auto`` never means running unprotected. Raises Refused (``SANDBOX_UNAVAILABLE``).
    """
    match choice:
        case "auto" | "bubblewrap":
            return Bubblewrap()
        case "unsafe-local":
            return UnsafeLocal()
        case "docker" | "e2b":
            raise Refused(
                "SANDBOX_UNAVAILABLE",
                f"this version has no {choice} sandbox yet: set RAYLOOM_SANDBOX to auto or bubblewrap",
            )
