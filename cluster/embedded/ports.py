"""Loopback ports that stay the same across restarts, so that those who are connected find the server again."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from rayloom.cluster.embedded.identity import ServiceError
from rayloom.cluster.home import write_private

# Below the range from which Linux takes ports for outgoing connections, above those of Ray's workers.
_FIRST, _LAST = 21_000, 29_999
_TRIES = 200


class PortBook:
    """The ports of one home, in ``ports.json``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, name: str) -> int | None:
        """The port that ``name`` had last time."""
        try:
            port = json.loads(self._path.read_text()).get(name)
        except (OSError, ValueError, AttributeError):
            return None
        return port if isinstance(port, int) else None

    def port(self, name: str) -> int:
        """A free port for ``name``: last time's if it can be. Raises ServiceError when none is free."""
        known = self.known(name)
        if known is not None and is_free("127.0.0.1", known):
            return known
        for _ in range(_TRIES):
            port = random.randint(_FIRST, _LAST)
            if is_free("127.0.0.1", port):
                self._write(name, port)
                return port
        raise ServiceError(f"no free port between {_FIRST} and {_LAST} on 127.0.0.1 for {name}")

    def _write(self, name: str, port: int) -> None:
        try:
            book = dict(json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            book = {}
        write_private(self._path, json.dumps(book | {name: port}) + "\n")


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as probe:
            # As servers do: connections that are only closing down are no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
            probe.listen(1)
    except OSError:
        return False
    return True
