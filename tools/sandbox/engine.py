"""A container engine spoken to over its socket: HTTP requests, and the streams of a container.

Plain sockets through whatever event loop runs, so that a stream opened in one loop may be used in another, and nothing
blocks. The engine's own library would need a thread for each call and for each stream.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from rayloom.dag.errors import Refused, Transient
from rayloom.dag.values import Json

CONNECT_S: Final = 2.0
ANSWER_S: Final = 30.0
READ_BYTES: Final = 65_536
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
UNIX: Final = "unix://"


class EngineError(Exception):
    """The engine answered with an error; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Engine:
    """One Docker engine (or what speaks its API), by the address of its socket: ``unix:///path``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._has_answered = False

    async def connect(self) -> socket.socket:
        """A connection.

        Raises Refused (``SANDBOX_UNAVAILABLE``) when nobody listens there, Transient (``SANDBOX_START_FAILED``) when
        somebody did before: it is being restarted.
        """
        if not self.address.startswith(UNIX):
            raise Refused("SANDBOX_UNAVAILABLE", f"{self.address} is no unix:///path: other sockets are not supported")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(connection, self.address.removeprefix(UNIX))
        except OSError as error:  # a TimeoutError is one, too
            connection.close()
            said = f"no container engine answers at {self.address}: {error.strerror or 'time is over'}"
            if self._has_answered:
                raise Transient("SANDBOX_START_FAILED", said) from error
            raise Refused("SANDBOX_UNAVAILABLE", said) from error
        except BaseException:
            connection.close()
            raise
        self._has_answered = True
        return connection

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json = None,
        data: bytes | None = None,
        within_s: float = ANSWER_S,
    ) -> Any:
        """One request; gives the answer's JSON, or its text where it is none.

        Raises EngineError, Refused (``SANDBOX_UNAVAILABLE``) without an engine, and Transient
        (``SANDBOX_START_FAILED``) when it does not answer in time or breaks off.
        """
        connection = await self.connect()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                await loop.sock_sendall(connection, _request(method, path, query, body, data))
                answer = bytearray()
                while more := await loop.sock_recv(connection, READ_BYTES):
                    answer += more
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise Transient("SANDBOX_START_FAILED", f"the container engine's answer to {path} is too large")
        except TimeoutError:
            said = f"the container engine did not answer {method} {path} within {within_s:g} s"
            raise Transient("SANDBOX_START_FAILED", said) from None
        except OSError as error:
            raise Transient("SANDBOX_START_FAILED", f"the container engine broke off: {error}") from error
        finally:
            connection.close()
        head, _, content = bytes(answer).partition(b"\r\n\r\n")
        status = _status(head)
        found = _decoded(content)
        if status >= 400:
            raise EngineError(status, str(found.get("message", found)) if isinstance(found, dict) else str(found))
        return found

    async def attach(self, container: str) -> socket.socket:
        """The streams of a container that has not started, as one connection; what is read from it has ``Demux``."""
        connection = await self.connect()
        loop = asyncio.get_running_loop()
        query = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
        request = _request("POST", f"/containers/{container}/attach", query, None, b"", upgrade=True)
        try:
            async with asyncio.timeout(ANSWER_S):
                await loop.sock_sendall(connection, request)
                head = bytearray()
                # Byte by byte past the first piece: what follows belongs to the container.
                while not head.endswith(b"\r\n\r\n"):
                    more = await loop.sock_recv(connection, 1)
                    if not more:
                        break
                    head += more
            if _status(bytes(head)) not in (101, 200):
                raise EngineError(_status(bytes(head)), "the streams of a container can't be had")
        except TimeoutError:
            connection.close()
            said = f"the container engine did not attach to a container within {ANSWER_S:g} s"
            raise Transient("SANDBOX_START_FAILED", said) from None
        except OSError as error:
            connection.close()
            raise Transient("SANDBOX_START_FAILED", f"the container engine broke off: {error}") from error
        except BaseException:
            connection.close()
            raise
        return connection


class Demux:
    """What comes from an attached container: the engine marks each piece with the stream that it was written to."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._left = 0
        self._stream = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The pieces in what came, as (1 for stdout, 2 for stderr; bytes); a piece may come in parts."""
        self._data += data
        pieces = []
        while self._data:
            if self._left == 0:
                if len(self._data) < 8:
                    break
                self._stream, self._left = struct.unpack(">BxxxI", self._data[:8])
                del self._data[:8]
                continue
            part = bytes(self._data[: self._left])
            del self._data[: len(part)]
            self._left -= len(part)
            pieces.append((self._stream, part))
        return pieces


def _request(
    method: str,
    path: str,
    query: Mapping[str, str] | None,
    body: Json,
    data: bytes | None,
    *,
    upgrade: bool = False,
) -> bytes:
    target = quote(path, safe="/:") + (f"?{urlencode(query)}" if query else "")
    # HTTP/1.0 ends an answer with its connection, and so never sends it in chunks.
    lines = [f"{method} {target} HTTP/1.{1 if upgrade else 0}", "Host: docker"]
    if upgrade:
        lines += ["Upgrade: tcp", "Connection: Upgrade"]
    if body is not None:
        data = orjson.dumps(body)
        lines.append("Content-Type: application/json")
    elif data:
        lines.append("Content-Type: application/x-tar")
    if data is not None:
        lines.append(f"Content-Length: {len(data)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (data or b"")


def _status(head: bytes) -> int:
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise Transient("SANDBOX_START_FAILED", "the container engine's answer is no HTTP")
    return int(words[1])


def _decoded(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return content.decode("utf-8", "replace").strip()
