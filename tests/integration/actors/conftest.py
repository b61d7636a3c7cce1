"""A database of its own for each test, on a real PostgreSQL, and a small Ray of this process alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

os.environ["RAY_AUTH_MODE"] = "disabled"

import ray
from uuid_utils.compat import uuid7

from rayloom.actors.named import NamedActor
from rayloom.actors.settings import EngineSettings
from rayloom.db.engine import make_engine
from rayloom.db.settings import DatabaseSettings
from tests.integration.databases import copy_of
from tests.integration.waiting import GENEROUS_S


@pytest.fixture
def database(server_url: str, template: str) -> Iterator[DatabaseSettings]:
    """An empty database with our schema, dropped afterwards."""
    with copy_of(server_url, template) as copied:
        yield copied


@pytest.fixture
async def engine(database: DatabaseSettings) -> AsyncIterator[AsyncEngine]:
    """Connections of the test itself."""
    engine = make_engine(database.primary_dsn(), pool_size=2, max_overflow=2, name="test")
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Path]:
    """A Ray of one CPU; the folder for its temporary files, and those of what runs on it."""
    folder = tempfile.mkdtemp(prefix="rlr")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", folder)
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=80 * 1024 * 1024,
                _temp_dir=folder,
            )
        yield Path(folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process takes longer to start than callers of an actor wait for it otherwise."""
    for function, name in ((NamedActor.__init__, "retry_for_s"), (NamedActor.call, "timeout_s")):
        defaults: Any = function.__kwdefaults__
        assert name in defaults
        monkeypatch.setitem(defaults, name, GENEROUS_S)


@pytest.fixture
def settings(local_ray: Path) -> Iterator[EngineSettings]:
    """Settings with a namespace that no other test uses; its actors are removed afterwards."""
    settings = EngineSettings(namespace=f"test-{uuid7().hex}")
    yield settings
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == settings.namespace:
            ray.kill(ray.get_actor(actor["name"], settings.namespace))
