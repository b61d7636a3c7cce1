"""Whole raylooms: one for all tests that only use it, and others for tests that kill parts of theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.instance import Instance, running


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
