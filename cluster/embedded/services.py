"""The embedded services together: what no URL was given for is started, and stopped in the right order."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import SecretStr

from rayloom.cluster.embedded.binaries import PgBinaries, RedisBinary
from rayloom.cluster.embedded.identity import ServiceError, choose, myself
from rayloom.cluster.embedded.keeper import Keeper, Tell
from rayloom.cluster.embedded.postgres import PostgresServer
from rayloom.cluster.embedded.redis import RedisServer
from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings
from rayloom.db.settings import DatabaseSettings, RedisSettings

# sockaddr_un has room for 107 bytes, of which ".s.PGSQL.<port>.lock" takes some.
_MAX_SOCKET_FOLDER = 80


class EmbeddedServices:
    """PostgreSQL and Redis of one home, which must be owned by this process."""

    def __init__(self, settings: Settings, home: Home, tell: Tell) -> None:
        self._settings = settings
        self._home = home
        self._tell = tell
        self._keepers: list[Keeper] = []
        self._sockets: Path | None = None
        self.postgres: PostgresServer | None = None
        self.redis: RedisServer | None = None
        self.postgres_keeper: Keeper | None = None
        self.redis_keeper: Keeper | None = None

    def start(self) -> tuple[DatabaseSettings, RedisSettings]:
        """Start what is wanted, both at once, and wait for it. Raises ServiceError; then nothing is left running."""
        database, redis = self._settings.database, self._settings.redis
        try:
            if not database.dsn_given:
                self._begin_postgres()
            if not redis.dsn_given:
                self._begin_redis()
            for keeper in self._keepers:
                keeper.wait_ready()
        except BaseException:
            self.stop()
            raise
        if self.postgres is not None:
            database = database.model_copy(update={"url": SecretStr(self.postgres.url)})
        if self.redis is not None:
            redis = redis.model_copy(update={"url": SecretStr(self.redis.url)})
        return database, redis

    def stop(self) -> None:
        """Stop Redis, then PostgreSQL; they are gone when this returns."""
        for keeper in reversed(self._keepers):
            keeper.stop()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    @property
    def are_running(self) -> bool:
        """Whether there is a server to stop."""
        return any(keeper.pid is not None for keeper in self._keepers)

    @property
    def pids(self) -> list[int]:
        """The processes of the servers that run now."""
        return [keeper.pid for keeper in self._keepers if keeper.pid is not None]

    def told(self) -> dict[str, str]:
        """Where each service comes from, for people; without any password."""
        return {
            "database": f"embedded, port {self.postgres.port}" if self.postgres else "external",
            "redis": f"embedded, port {self.redis.port}" if self.redis else "external",
        }

    def _begin_postgres(self) -> None:
        self._sockets = socket_folder(self._home.path)
        binaries = PgBinaries.find(major=data_version(self._home))
        identity = choose(program=binaries.probe(), folder=self._home.path)
        if (self._home.postgres / "data").exists() and self._home.read_secret("database_password") is None:
            raise ServiceError(
                f"{self._home.path / 'database_password'} is missing, and the data in {self._home.postgres} need it: "
                "bring it back, or move that folder away to begin anew"
            )
        self.postgres = PostgresServer(self._home, binaries, identity, self._sockets)
        self.postgres_keeper = Keeper(self.postgres, identity, self._tell)
        self._keepers.append(self.postgres_keeper)
        self.postgres_keeper.begin()

    def _begin_redis(self) -> None:
        binary = RedisBinary.find()
        try:
            identity = choose(program=[str(binary.path), "--version"], folder=self._home.path)
        except ServiceError:
            identity = myself()  # unlike PostgreSQL it can be root
        self.redis = RedisServer(self._home, binary, identity)
        self.redis_keeper = Keeper(self.redis, identity, self._tell)
        self._keepers.append(self.redis_keeper)
        self.redis_keeper.begin()


def data_version(home: Home) -> int | None:
    """The major version of PostgreSQL that made the data in a home, or None where there are none yet."""
    try:
        return int((home.postgres / "data" / "PG_VERSION").read_text())
    except (OSError, ValueError):
        return None


def socket_folder(home: Path) -> Path:
    """A short folder for Unix sockets, always the same for a home. Raises ServiceError if somebody else made it."""
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:8]
    name = f"rayloom-{os.geteuid()}-{digest}"
    runtime = Path(tempfile.gettempdir())
    folder = runtime / name if len(os.fsencode(runtime / name)) <= _MAX_SOCKET_FOLDER else Path("/tmp") / name
    try:
        if folder.exists() or folder.is_symlink():
            shutil.rmtree(folder)
        # Made anew, so that nothing in it can be somebody else's: all may write to the folder above.
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ServiceError(f"{folder} is in the way ({error.strerror}): remove it, or set TMPDIR") from None
    return folder
