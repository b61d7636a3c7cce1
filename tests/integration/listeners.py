"""Where processes listen for connections, as the kernel knows it (Linux)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

_LISTENING: Final = "0A"
_ACCEPTS: Final = 0x10000
"""The flag of a Unix socket that listens."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that takes connections."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        return f"{self.address} port {self.port}"


def listeners_of(pid: int) -> list[Listener]:
    """The listening TCP sockets that a process has open; none of one that has ended."""
    inodes = _inodes(pid)
    return [listener for inode, listener in _listening(pid) if inode in inodes]


def unix_listeners_of(pid: int) -> list[str]:
    """The paths of the listening Unix sockets that a process has open; abstract ones begin with ``@``."""
    inodes = _inodes(pid)
    with suppress(FileNotFoundError):
        lines = (line.split(maxsplit=7) for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:])
        return [each[7] for each in lines if len(each) == 8 and int(each[3], 16) & _ACCEPTS and each[6] in inodes]
    return []


def _inodes(pid: int) -> set[str]:
    inodes: set[str] = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(entry.readlink()).removeprefix("socket:[").removesuffix("]"))
    return inodes


def _listening(pid: int) -> list[tuple[str, Listener]]:
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING:
                    host, _, port = fields[1].partition(":")
                    found.append((fields[9], Listener(_address(host), int(port, 16))))
    return found


def _address(raw: str) -> IPv4Address | IPv6Address:
    # Words of 32 bits, each in the byte order of the machine.
    words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(socket.inet_ntop(socket.AF_INET6, packed))
    return address.ipv4_mapped or address
