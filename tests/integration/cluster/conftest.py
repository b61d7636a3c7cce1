"""Homes under short paths, each with a user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.owner import User, me, nobody


@pytest.fixture(scope="session", params=["me", "nobody"])
def user(request: pytest.FixtureRequest) -> User:
    """Whoever runs the tests, and an ordinary user besides when that is root."""
    return me() if request.param == "me" else nobody()


@pytest.fixture
def home(user: User) -> Iterator[Path]:
    """A home that is yet to be made, in a folder of the user's."""
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    os.chown(folder, user.uid, user.gid)
    yield folder / "home"
    shutil.rmtree(folder)
