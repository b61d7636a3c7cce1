"""Free ports on the loopback."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

# Ray's workers take ports below it.
_FIRST: Final = 20_000
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """So many different ports that nobody listens on now, none of them twice in one process.

    They are none of those that the system gives to whoever asks for any port, or only connects: between being found
    and being used such a one may become anybody's.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(_range(), len(_range())):
            if len(found) == count:
                break
            if port not in _given:
                with suppress(OSError):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                    found.append(port)
    assert len(found) == count
    _given.update(found)
    return found


def _range() -> range:
    first_of_system = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    return range(_FIRST, first_of_system) if first_of_system >= _FIRST + 1_000 else range(_FIRST, 65_536)
