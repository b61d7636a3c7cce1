"""Whole raylooms: one for all tests that only use it, and others for tests that kill parts of theirs.

And how examples are drawn: the same in every run, and however slowly. `--hypothesis-profile=search` draws others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.instance import Instance, running

# A machine that is busy is no fault of what is tested; by itself an example may take 200 ms.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("search"), derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def instance() -> Iterator[Instance]:
    """A rayloom that all tests share: use it, break nothing."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def private_instance() -> Iterator[Instance]:
    """A rayloom of this module alone, to kill parts of."""
    with running() as started:
        yield started
