"""Somebody who stands before a server and shows a key for those who can't: each connection carries one request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


@asynccontextmanager
async def keyed(url: str, key: str) -> AsyncIterator[str]:
    """The address at which ``url`` is found without a key, for the length of the block."""
    port = urlsplit(url).port

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", port)
        line, _, rest = head.partition(b"\r\n")
        # The server ends the connection after its answer, so nothing but this request comes over it.
        back.write(line + b"\r\nAuthorization: Bearer " + key.encode() + b"\r\nConnection: close\r\n" + rest)
        try:
            up = asyncio.create_task(_pipe(reader, back))
            await _pipe(there, writer)
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
        finally:
            back.close()
            writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        # One side has gone: that is the end of it, as a server's own would be.
        return
