"""Where a tool may connect: public addresses only, save what the settings allow by name.

Names are resolved here, once, and the connection goes to the addresses that were checked, one after the other: a name
that answers differently the second time gains nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeVar
from urllib.parse import SplitResult, urlsplit

import idna

from rayloom.dag.errors import Refused, Transient, UserError

MAX_URL_CHARS: Final = 8_192
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_TRIED: Final = 8
"""So many addresses of a name are tried; all of them are checked."""
LOOK_UP_S: Final = 8.0
"""How long name servers may be silent: time for a second one where the first is down."""

Address = IPv4Address | IPv6Address
_LOOPBACK: Final[tuple[Address, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
T = TypeVar("T")

# is_global knows most of them; these are said anyway, or carry another address inside.
_NEVER: Final[tuple[IPv4Network | IPv6Network, ...]] = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # public by its number, and to every machine of Azure the one that configures it
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_LOOKS_NUMERIC: Final = re.compile(r"(0x[0-9a-f]*|\d+)", re.IGNORECASE)
DNS_FAILED: Final = "DNS_FAILED"
"""The code of the error of a name that does not resolve."""
_HOST_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A checked URL: its parts, the host in its one spelling (lower case, no trailing dot, punycode)."""

    scheme: str
    host: str
    port: int
    path_and_query: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs share that are of the same origin."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The Host header: with the port only where it isn't the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole URL in its one spelling: it has neither credentials nor a fragment, but its query."""
        return f"{self.scheme}://{self.authority}{self.path_and_query}"

    @property
    def shown(self) -> str:
        """The URL for errors and logs, without its query: that may hold secrets."""
        return f"{self.scheme}://{self.authority}{self.path_and_query.partition('?')[0]}"


def parse_url(url: str) -> Target:
    """The target of an HTTP URL.

    Raises UserError (``URL_INVALID``) for other schemes, credentials, control characters, odd spellings of numeric
    addresses, and what is no URL at all.
    """
    if len(url) > MAX_URL_CHARS:
        raise _invalid(f"longer than {MAX_URL_CHARS} characters")
    if any(char <= " " or char in "\\\x7f" for char in url):
        raise _invalid("spaces, control characters and backslashes are not allowed")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _invalid(str(error)) from None
    if parts.scheme not in DEFAULT_PORTS:
        raise _invalid("the scheme must be http or https")
    if "@" in parts.netloc:
        raise _invalid("credentials belong into a header, not into the URL")
    if port == 0:
        raise _invalid("there is no port 0")
    return Target(
        scheme=parts.scheme,
        host=_host(parts),
        port=port or DEFAULT_PORTS[parts.scheme],
        path_and_query=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
    )


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").removesuffix(".")
    if not host:
        raise _invalid("it has no host")
    if parts.netloc.startswith("["):
        try:
            address = IPv6Address(host)
        except ValueError:
            address = None
        if address is None or address.scope_id is not None:  # no public address has a zone (%eth0)
            raise _invalid(f"{host!r} is no public IPv6 address")
        return _spelled(address)
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii").removesuffix(".")
        except idna.IDNAError as error:
            raise _invalid(f"the host name is invalid: {error}") from None
    # What a resolver may read as a number (0x7f.1, 017700000001, 127.1) passes only in its plain spelling.
    if _LOOKS_NUMERIC.fullmatch(host.rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _invalid(f"{host!r} is an odd spelling of an address: write it as four plain numbers") from None
    if len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise _invalid(f"{host[:80]!r} is no host name")
    return host


def _spelled(address: IPv6Address) -> str:
    """Spell an address as URLs do: an IPv4 address inside has no dots. Python writes it with dots from 3.13 on."""
    if address.ipv4_mapped is None:
        return str(address)
    high, low = divmod(int(address.ipv4_mapped), 1 << 16)
    return f"::ffff:{high:x}:{low:x}"


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and carries no other address inside."""
    if isinstance(address, IPv6Address) and (address not in _GLOBAL_UNICAST or address.scope_id is not None):
        return False  # also IPv4-mapped and -compatible, NAT64, unique-local, link-local, multicast
    return address.is_global and not any(address.version == block.version and address in block for block in _NEVER)


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What may be reached beside public addresses."""

    names: frozenset[tuple[str, int]]
    networks: tuple[tuple[IPv4Network | IPv6Network, int | None], ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> AddressRules:
        """The rules of an allow-list: ``name:port``, ``address``, ``address:port``, ``[v6]:port`` or CIDR entries.

        Raises UserError (``ALLOW_ADDRESSES_INVALID``).
        """
        names: set[tuple[str, int]] = set()
        networks: list[tuple[IPv4Network | IPv6Network, int | None]] = []
        for entry in entries:
            whole = _network(entry.strip())
            host, _, port = entry.strip().rpartition(":")
            if whole is not None:
                networks.append((whole, None))
            elif not port.isdecimal() or not 0 < int(port) < 65_536:
                raise _no_entry(entry)
            elif (network := _network(host)) is not None:
                networks.append((network, int(port)))
            else:
                names.add((_name(host, entry), int(port)))
        return cls(frozenset(names), tuple(networks))

    def allow(self, host: str, port: int, address: Address) -> bool:
        """Whether a connection to this address, found under this host name, is allowed."""
        if is_public(address) or (host, port) in self.names:
            return True
        return any(
            address.version == network.version and address in network and only_port in (None, port)
            for network, only_port in self.networks
        )


async def addresses_of(host: str, port: int, rules: AddressRules) -> list[Address]:
    """All addresses of a host, each of them allowed, in the order in which they are to be tried.

    Raises Refused (``ADDRESS_REFUSED``) when any of the host's addresses is not allowed, and Transient
    (``DNS_FAILED``) when the name can't be resolved.
    """
    try:
        found: list[Address] = [ip_address(host)]
    except ValueError:
        found = await _look_up(host, port)
    for address in found:
        # One bad address among good ones is how rebinding begins: refuse them all.
        if not rules.allow(host, port, address):
            raise Refused(
                "ADDRESS_REFUSED",
                f"{host}:{port} is at {address}, which is not a public address; an administrator may allow it with "
                "RAYLOOM_ALLOW_ADDRESSES",
            )
    return found


async def first_reached(
    addresses: Sequence[Address],
    connect: Callable[[Address, float], Awaitable[T]],
    *,
    until: float,
    unless: type[Exception] | tuple[type[Exception], ...],
) -> T:
    """What ``connect`` gives for the first of the addresses that can be reached: of the first 8, in their order.

    ``connect`` gets the seconds to get there within: an equal share of what is left ``until`` then, in the loop's time.
    So one that is silent leaves time for the next, and one that fails at once leaves all of its own.

    ``unless``: what it raises where nobody was reached and nothing was sent. Raises what it raised for the last
    address, and at once whatever else it raises.
    """
    clock = asyncio.get_running_loop().time
    *others, last = addresses[:MAX_TRIED]
    for tried, address in enumerate(others):
        try:
            return await connect(address, max(until - clock(), 0.0) / (len(others) + 1 - tried))
        except unless:
            continue
    return await connect(last, max(until - clock(), 0.0))


def is_localhost(host: str) -> bool:
    """Tell whether a name is this machine by RFC 6761, section 6.3, even if no file and no name server knows it."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


async def _look_up(host: str, port: int) -> list[Address]:
    try:
        async with asyncio.timeout(LOOK_UP_S):
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise Transient(DNS_FAILED, f"no name server said within {LOOK_UP_S:g} s where {host} is") from None
    except (OSError, UnicodeError) as error:
        if is_localhost(host):
            return list(_LOOPBACK)
        raise Transient(DNS_FAILED, f"the name {host} can't be resolved: {error}") from None
    found: list[Address] = []
    for _, _, _, _, (text, *_) in answers:
        address = ip_address(text)
        if address not in found:
            found.append(address)
    if not found:
        raise Transient(DNS_FAILED, f"the name {host} has no address")
    return found


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        # Who writes 192.168.1.5/24 means the network that it is in.
        return ip_network(text.removeprefix("[").removesuffix("]"), strict=False)
    except ValueError:
        return None


def _name(text: str, entry: str) -> str:
    """A host name in the spelling of `Target`."""
    try:
        host = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise _no_entry(entry) from None
    host = host.removesuffix(".")
    if not _HOST_NAME.fullmatch(host) or _LOOKS_NUMERIC.fullmatch(host.rpartition(".")[2]):
        raise _no_entry(entry)
    return host


def _no_entry(entry: str) -> UserError:
    return UserError(
        "ALLOW_ADDRESSES_INVALID",
        f"{entry!r} is none of host:port, address, address:port, [IPv6]:port and CIDR such as 10.0.0.0/8",
    )


def _invalid(reason: str) -> UserError:
    return UserError("URL_INVALID", f"the URL is refused: {reason}")
