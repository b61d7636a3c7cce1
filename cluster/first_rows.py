"""Brings a database to where a start needs it: the schema, the role of the workers, and the first key."""

from __future__ import annotations

import hashlib
import logging

from pydantic import SecretStr

from rayloom.cluster import reach
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings
from rayloom.db.engine import make_engine
from rayloom.db.keys import ensure_admin
from rayloom.db.migrate import MigrationError, WorkerRoleError, ensure_worker_role, missing_grants, upgrade
from rayloom.db.settings import DatabaseSettings

_log = logging.getLogger(__name__)


async def prepare_database(settings: Settings, home: Home, database: DatabaseSettings) -> tuple[DatabaseSettings, str]:
    """Answers the settings with the workers' URL, and the first key. Raises StartRefused, in one line."""
    try:
        await upgrade(database.primary_dsn())
    except MigrationError as error:
        raise StartRefused(str(error)) from None
    if database.worker_url is None:
        database = await _with_worker_role(home, database)
    else:
        await _check_worker_role(database)
    return database, await first_key(settings, home, database)


async def _with_worker_role(home: Home, database: DatabaseSettings) -> DatabaseSettings:
    password = hashlib.sha256(home.secret("worker_password").encode()).hexdigest()
    # Homes that share a database must not change each other's password.
    role = "rayloom_worker_" + password[:8]
    try:
        url = await ensure_worker_role(database.primary_dsn(), role=role, password=password)
    except WorkerRoleError as error:
        raise StartRefused(
            f"{error}: mend that, or make a role yourself and give its URL as RAYLOOM_DATABASE_WORKER_URL"
        ) from None
    if url is None:
        _log.warning("worker_role.not_made: workers use the role of RAYLOOM_DATABASE_URL")
        return database
    return database.model_copy(update={"worker_url": SecretStr(url)})


async def _check_worker_role(database: DatabaseSettings) -> None:
    """One that the user made may be of an older version, or not be done."""
    await reach.worker(database)
    if missing := await missing_grants(database.worker_dsn()):
        raise StartRefused(
            "the role of RAYLOOM_DATABASE_WORKER_URL lacks rights that workers need; as the owner of the database run: "
            + "; ".join(missing)
        )


async def first_key(settings: Settings, home: Home, database: DatabaseSettings) -> str:
    """The key that opens the door for whoever starts us: the one given, or the one kept in the home.

    One that was revoked meanwhile is refused when it was given, and replaced when we keep it.
    """
    given = settings.api_key.get_secret_value()
    key = given or home.secret("api_key")
    engine = make_engine(database.primary_dsn(), pool_size=1, max_overflow=0, name="rayloom-up")
    try:
        if await ensure_admin(engine, key=key):
            return key
        if given:
            raise StartRefused("the key in RAYLOOM_API_KEY was revoked: give another one, or leave it out")
        # Kept first: one that opens the door and that nobody knows would stay in the database.
        key = home.new_secret("api_key")
        await ensure_admin(engine, key=key)
        return key
    finally:
        await engine.dispose()
