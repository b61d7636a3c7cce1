"""What tests of the scheduler's parts share."""

from __future__ import annotations

import pytest

from tests.fakes.desk import Desk


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A dispatch with everything around it in memory."""
    return Desk.set_up(monkeypatch)
