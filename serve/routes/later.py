"""What the contract names and a later version brings: refused in plain words."""

from __future__ import annotations

from rayloom.serve.problems import Problem


def not_built(what: str) -> Problem:
    """The 501 of a feature that this version does not have."""
    return Problem(501, f"{what} is not built in this version", code="NOT_BUILT")
