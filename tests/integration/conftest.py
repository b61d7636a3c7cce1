"""What tests of several rooms stand on: a PostgreSQL and a Redis, and whole raylooms."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from uuid_utils.compat import uuid7

from rayloom.cluster.embedded.services import EmbeddedServices
from rayloom.cluster.home import Home
from rayloom.cluster.settings import load_settings
from rayloom.db.migrate import upgrade
from tests.integration import mcp_servers
from tests.integration.databases import administer, dropping, url_of
from tests.integration.s3 import S3Server, s3_server


@pytest.fixture(scope="session")
def servers() -> Iterator[tuple[str, str]]:
    """The URLs of a PostgreSQL and a Redis: those named in the environment, or embedded ones."""
    database, redis = os.environ.get("RAYLOOM_TEST_DATABASE_URL"), os.environ.get("RAYLOOM_TEST_REDIS_URL")
    if database and redis:
        # Tests empty their Redis database, so each process of xdist has its own: 0, 15, 14 …
        number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        yield database, urlsplit(redis)._replace(path=f"/{-number % 16}").geturl()
        return
    folder = Path(tempfile.mkdtemp(prefix="rl-"))
    home = Home(folder / "home")
    home.acquire()
    services = EmbeddedServices(load_settings(environ={"RAYLOOM_HOME": str(home.path)}), home, lambda _: None)
    try:
        ours = services.start()
        yield ours[0].primary_dsn(), ours[1].dsn()
    finally:
        services.stop()
        home.release()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server_url(servers: tuple[str, str]) -> str:
    """The PostgreSQL alone."""
    return servers[0]


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a migrated database, to copy."""
    name = f"rl_template_{uuid7().hex}"
    asyncio.run(administer(server_url, f"CREATE DATABASE {name}"))
    asyncio.run(upgrade(url_of(server_url, name)))
    yield name
    asyncio.run(administer(server_url, *dropping(name)))


@pytest.fixture(scope="session")
def pypi_servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The programs of MCP servers from PyPI."""
    return mcp_servers.pypi_servers(tmp_path_factory.mktemp("pypi"))


@pytest.fixture(scope="session")
def npm_servers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The programs of MCP servers from npm."""
    return mcp_servers.npm_servers(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server that every test may use, each with a prefix of its own."""
    with s3_server() as server:
        yield server
