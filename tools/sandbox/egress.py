"""The way out of a sandbox: a filtering proxy of ours, for one run, that reaches what the run was allowed and no more.

The sandbox itself has no network. It sees one socket file, behind which this proxy listens outside; inside, a relay
stands on the loopback between that file and programs that know proxies by ``http_proxy`` and ``https_proxy``. Names are
resolved here, once a connection, and checked against the rules of `addresses`: an allowed name that points at a private
address leads nowhere.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from rayloom.dag.errors import RayloomError, UserError
from rayloom.tools.addresses import Address, AddressRules, addresses_of, first_reached, parse_url

MAX_ALLOWED: Final = 64
MAX_CONNECTIONS: Final = 64
MAX_HEAD_BYTES: Final = 16_384
HEAD_S: Final = 10.0
CONNECT_S: Final = 15.0
PIECE_BYTES: Final = 65_536
INSIDE: Final = "/run/egress"
SOCKET: Final = "proxy"
PORT: Final = 3_128
ENVIRONMENT: Final = {
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), f"http://127.0.0.1:{PORT}"),
    "no_proxy": "localhost",
    "NO_PROXY": "localhost",
}
RELAY: Final = f"""
import os, socket, threading
outer = socket.create_server(("127.0.0.1", {PORT}), backlog=64)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (a, b):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
def serve(a):
    with a, socket.socket(socket.AF_UNIX) as b:
        try:
            b.connect("{INSIDE}/{SOCKET}")
        except OSError:
            return
        other = threading.Thread(target=pump, args=(b, a))
        other.start()
        pump(a, b)
        other.join()
while True:
    threading.Thread(target=serve, args=(outer.accept()[0],), daemon=True).start()
"""
"""Runs inside. It ends with the program, and whatever the program does to it is the program's own loss."""
WRAPPER: Final = '"${RELAY_PYTHON:-python3}" -I -S -c "$RELAY" || exit 126; unset RELAY RELAY_PYTHON; exec "$@"'
"""POSIX shell: start the relay, which listens when this goes on, and become the program."""

Refusal = Callable[[str], None]


def allowed(entries: Sequence[str]) -> frozenset[tuple[str, int]]:
    """The entries of an allow-list as (host, port), each host in its one spelling.

    Raises UserError (``NETWORK_INVALID``).
    """
    if len(entries) > MAX_ALLOWED:
        raise UserError("NETWORK_INVALID", f"/network/allow: at most {MAX_ALLOWED} entries")
    found = set()
    for at, entry in enumerate(entries):
        target = _target(entry)
        if target is None:
            raise UserError("NETWORK_INVALID", f"/network/allow/{at}: {entry[:100]!r} is no host:port")
        found.add(target)
    return frozenset(found)


@asynccontextmanager
async def opened(
    targets: frozenset[tuple[str, int]], rules: AddressRules, *, on_refusal: Refusal
) -> AsyncIterator[Path]:
    """A proxy to these targets, while the block runs; gives the folder that the sandbox is to see at `INSIDE`."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="rayloom-egress-"))
    proxy = _Proxy(targets, rules, on_refusal)
    try:
        server = await asyncio.start_unix_server(proxy.serve, folder / SOCKET, limit=MAX_HEAD_BYTES)
        _open_to_all(folder)
        try:
            yield folder
        finally:
            server.close()
            await proxy.close()
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _open_to_all(folder: Path) -> None:
    """Whoever the sandbox runs as may pass, and connect; nobody may list or write."""
    (folder / SOCKET).chmod(0o666)
    folder.chmod(0o711)


class _Proxy:
    def __init__(self, targets: frozenset[tuple[str, int]], rules: AddressRules, on_refusal: Refusal) -> None:
        self._targets, self._rules, self._on_refusal = targets, rules, on_refusal
        self._open: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End every connection."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from inside."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # The program's connection, and its loss; when the run is over nobody reads the other end any more.
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_S):
            head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.partition(b"\r\n")
        words = line.decode("latin-1").split(" ")
        if len(words) != 3:
            await _answer(writer, 400, "no request of a proxy's client")
            return
        method, asked, version = words
        tunnel = method == "CONNECT"
        target, path = (_target(asked), "") if tunnel else _plain(asked)
        if target is None:
            await _answer(writer, 400, "name a host and a port, by CONNECT or by an http:// URL")
            return
        shown = f"{target[0]}:{target[1]}"
        if target not in self._targets:
            self._on_refusal(f"{shown} is not in the allow-list")
            await _answer(writer, 403, f"{shown} is not in the allow-list of this run")
            return
        try:
            until = asyncio.get_running_loop().time() + CONNECT_S
            async with asyncio.timeout_at(until):
                addresses = await addresses_of(*target, self._rules)
                connect = partial(_connect, target[1])
                far_reader, far_writer = await first_reached(addresses, connect, until=until, unless=OSError)
        except (RayloomError, OSError) as error:
            said = error.message if isinstance(error, RayloomError) else f"{shown} can't be reached"
            self._on_refusal(said)
            await _answer(writer, 403 if isinstance(error, RayloomError) else 502, said)
            return
        try:
            if tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                far_writer.write(f"{method} {path} {version}\r\n".encode("latin-1") + _headers(rest))
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, far_writer))
                both.create_task(_pump(far_reader, writer))
        finally:
            far_writer.close()


async def _connect(port: int, address: Address, within_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises OSError, of which TimeoutError is one."""
    async with asyncio.timeout(within_s):
        return await asyncio.open_connection(str(address), port)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    # What breaks off on one side ends that direction; the other one ends by itself.
    with suppress(OSError):
        while data := await source.read(PIECE_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()


def _target(authority: str) -> tuple[str, int] | None:
    """A host and its port, which must be said."""
    if not authority.rpartition(":")[2].isdecimal() or "/" in authority or "?" in authority or "#" in authority:
        return None
    try:
        target = parse_url(f"http://{authority}/")
    except UserError:
        return None
    return target.host, target.port


def _plain(url: str) -> tuple[tuple[str, int] | None, str]:
    try:
        target = parse_url(url)
    except UserError:
        return None, ""
    return ((target.host, target.port), target.path_and_query) if target.scheme == "http" else (None, "")


def _headers(head: bytes) -> bytes:
    """The request's headers for the server: one request a connection, and nothing that was meant for a proxy."""
    lines = [each for each in head.split(b"\r\n") if each]
    ours = (b"proxy-", b"connection:", b"keep-alive:")
    kept = [each for each in lines if not each.lower().startswith(ours)]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


async def _answer(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    reason = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}[status]
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    await writer.drain()
