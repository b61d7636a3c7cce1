"""What a statement may do, and where a connection may lead: never to rayloom's own database."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from rayloom.dag.errors import Refused, UserError
from rayloom.tools.addresses import is_localhost

POSTGRESQL_PORT: Final = 5432
_LOCAL: Final = "local"
_READING: Final = frozenset({"select", "with", "values", "table", "explain", "show"})
_NOISE: Final = re.compile(r"(\s+|--[^\n]*(\n|$)|/\*.*?\*/|\()", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a PostgreSQL URL leads: its addresses (this machine's are all one), port and database."""

    hosts: frozenset[str]
    port: int
    database: str


def refuse_writing(sql: str) -> None:
    """Refuse a statement whose first word is not one of reading. Raises Refused (``SQL_READ_ONLY``).

    The read-only transaction is what holds; this only keeps away COPY, DO, CALL, SET and their like, which it lets by.
    """
    at = 0
    while match := _NOISE.match(sql, at):
        at = match.end()
    word = re.match(r"[A-Za-z]*", sql[at:])
    first = word[0].lower() if word else ""
    if first not in _READING:
        raise Refused("SQL_READ_ONLY", f"only statements that read are allowed; this begins with {sql[at : at + 20]!r}")


async def refuse_own(url: str, forbidden: Iterable[str]) -> None:
    """Refuse a connection that leads to one of rayloom's own databases, however it is spelt.

    Raises Refused (``CONNECTION_REFUSED``).
    """
    place = await _place(url)
    for own in forbidden:
        other = await _place(own)
        if (place.port, place.database) == (other.port, other.database) and place.hosts & other.hosts:
            raise Refused("CONNECTION_REFUSED", "this connection leads to rayloom's own database, unseen by tools")


async def _place(url: str) -> Place:
    parts = urlsplit(url)
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    try:
        port = parts.port or int(query.get("port", POSTGRESQL_PORT))
    except ValueError:
        raise UserError("CONNECTION_INVALID", "the port of the connection's URL is no number") from None
    user = unquote(parts.username or query.get("user", ""))
    database = unquote(parts.path.lstrip("/")) or query.get("dbname", query.get("database", user))
    host = unquote(query.get("host", parts.hostname or ""))
    hosts: set[str] = set()
    for name in host.split(","):
        hosts |= await _addresses(name)
    return Place(frozenset(hosts), port, database)


async def _addresses(host: str) -> set[str]:
    if not host or host.startswith(("/", "@")):
        return {_LOCAL}
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return {_LOCAL if is_localhost(host) else host.lower()}
    found = {str(answer[4][0]) for answer in answers}
    return {_LOCAL if address.startswith(("127.", "::1", "0.0.0.0", "::ffff:127.")) else address for address in found}
