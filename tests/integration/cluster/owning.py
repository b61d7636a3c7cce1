"""Owns a home: ``owning.py SITE_PACKAGES HOME`` starts the embedded services, says where, and ends with its input.

Modules of wheels that are named after HOME are not found.
"""

from __future__ import annotations

import json
import site
import sys
from pathlib import Path


def main(home: Path) -> None:
    """Serve until standard input ends."""
    from rayloom.cluster.embedded.services import EmbeddedServices
    from rayloom.cluster.home import Home
    from rayloom.cluster.settings import load_settings

    settings = load_settings(environ={"RAYLOOM_HOME": str(home)})
    owned = Home(home)
    owned.acquire()
    news: list[str] = []
    services = EmbeddedServices(settings, owned, news.append)
    database, redis = services.start()
    assert services.postgres is not None
    told = {
        "database": database.primary_dsn().replace("+asyncpg", ""),
        "redis": redis.dsn(),
        "news": news,
        "sockets": str(services.postgres.sockets),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    services.stop()
    owned.release()


if __name__ == "__main__":
    site.addsitedir(sys.argv[1])
    # As if their wheels were not installed.
    sys.modules.update(dict.fromkeys(sys.argv[3:]))  # type: ignore[arg-type]
    main(Path(sys.argv[2]))
