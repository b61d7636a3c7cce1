"""What a program in a sandbox elsewhere may reach, in the terms of E2B: names, each at the ports 80 and 443 together.

The service lets a connection through by the name that it sees in it (Host at port 80, SNI at 443), whatever the
address. A list that wants less than that is refused, since nothing would hold a program to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from rayloom.dag.errors import Refused
from rayloom.tools.addresses import AddressRules, addresses_of

PORTS: Final = frozenset({80, 443})
NO_EXCEPTION: Final = AddressRules.parse(())


async def hosts(targets: frozenset[tuple[str, int]]) -> dict[str, str]:
    """The address of each name, resolved once and here; for the sandbox's own list, since it may ask nobody.

    What is private here is somebody else's there: nothing allows it. Raises Refused (``NETWORK_REFUSED``,
    ``ADDRESS_REFUSED``) and Transient (``DNS_FAILED``).
    """
    ports: dict[str, set[int]] = {}
    for host, port in targets:
        ports.setdefault(host, set()).add(port)
    names = sorted(ports)
    for name in names:
        if _is_address(name):
            raise Refused("NETWORK_REFUSED", f"E2B opens all ports of an address: list a name in place of {name}")
        if ports[name] != PORTS:
            said = f"E2B opens a name at the ports 80 and 443 together, and at no other: list {name}:80 and {name}:443"
            raise Refused("NETWORK_REFUSED", said)
    found = await asyncio.gather(*(addresses_of(name, 443, NO_EXCEPTION) for name in names))
    return {name: _reachable(name, each) for name, each in zip(names, found, strict=True)}


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _reachable(name: str, addresses: Sequence[IPv4Address | IPv6Address]) -> str:
    for address in addresses:
        if isinstance(address, IPv4Address):
            return str(address)
    raise Refused("NETWORK_REFUSED", f"{name} has no IPv4 address, and E2B's sandboxes reach no other")
