"""An OpenAI-compatible endpoint on the loopback that answers, and misbehaves, as it is told.

In a test, with a script that makes a `Reply` of each request::

    with Endpoint(lambda asked: Reply(text="Paris.")) as endpoint:
        ...  # endpoint.url, endpoint.asked

``Endpoint([Reply(status=500), Reply()])`` gives its replies in turn; what comes after the last is answered 500.
As a process, with what `scenarios.py` knows by the name of the model: ``python -m tests.integration.models.endpoint``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal

_REASONS: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
PATIENCE_S: Final = 120.0
"""How long a test waits for what must come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a request is answered.

    Where ``status`` is not 200: ``error``, the members of the body's ``error``. Else ``text``, streamed in pieces of
    ``piece_chars`` with ``gap_s`` seconds between. ``hang``: say nothing more ``before`` the head of the answer, before
    the ``first`` piece, ``within``, when half of the text is said, or ``after`` its end but before its usage, until the
    client leaves. ``ends``: ``unfinished`` says half of the text and closes the stream without a word of why, ``cut``
    breaks the connection there, ``undone`` leaves out the last ``[DONE]`` alone. ``usage``: what it says it has used;
    None: nothing. ``gate``: halfway it waits for `Endpoint.open_gate`. ``raw``: bytes in place of the whole stream.
    """

    text: str = "Good."
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, object] = field(default_factory=dict)
    piece_chars: int = 8
    gap_s: float = 0.0
    hang: Literal["before", "first", "within", "after"] | None = None
    ends: Literal["well", "unfinished", "cut", "undone"] = "well"
    finish: str = "stop"
    usage: Mapping[str, object] | Literal["right"] | None = "right"
    gate: str = ""
    raw: bytes | None = None


@dataclass(slots=True, eq=False)
class Asked:
    """One request for a completion; ``number`` 1 is the first.

    ``left`` is set when the client went away before its answer was whole, ``answered`` when it was.
    """

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    connection: int
    number: int = 0
    left: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def prompt(self) -> str:
        """All that was said, of whoever said it."""
        return "\n".join(str(message["content"]) for message in self.body["messages"])

    @property
    def schema(self) -> dict[str, Any] | None:
        """The schema that the endpoint was asked to see to."""
        asked = self.body.get("response_format") or {}
        found: dict[str, Any] | None = asked.get("json_schema", {}).get("schema")
        return found

    def as_json(self) -> dict[str, Any]:
        """What is told of it to another process, at ``GET /asked``."""
        headers = {name: value for name, value in self.headers.items() if name != "authorization"}
        ends = {"left": self.left.is_set(), "answered": self.answered.is_set()}
        return {"path": self.path, "body": self.body, "connection": self.connection, "headers": headers} | ends


Script = Callable[[Asked], Reply]


def refusing(options: Sequence[str], reply: Script | Reply = Reply()) -> Script:
    """Refuse every request with one of these options, dots for what is within, as endpoints do; else ``reply``."""

    def script(asked: Asked) -> Reply:
        for option in options:
            place: Any = asked.body
            for name in option.split("."):
                place = place.get(name) if isinstance(place, dict) else None
            if place is not None:
                shown = f"Unsupported parameter: '{option}' is not supported with this model."
                return Reply(status=400, error={"message": shown, "param": option, "code": "unsupported_parameter"})
        return reply if isinstance(reply, Reply) else reply(asked)

    return script


class Endpoint:
    """Listens while it is entered. ``asked``: the requests for completions so far, in the order they came.

    ``looks``: the paths of all others, such as that of the list of ``models``, which are answered ``look_status``.
    """

    def __init__(self, script: Script | Sequence[Reply] = lambda asked: Reply(), *, port: int = 0) -> None:
        self._script = script if callable(script) else _in_turn(iter(script))
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._gates: dict[str, asyncio.Event] = {}
        self._talks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self.models: tuple[str, ...] = ("scripted",)
        self.asked: list[Asked] = []
        self.looks: list[str] = []
        self.look_status = 200
        self._news = threading.Condition()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self._port}/v1"

    def open_gate(self, name: str) -> None:
        """Let every answer with this gate go on, now and later."""
        self._loop.call_soon_threadsafe(self._gate(name).set)

    def wait_asked(self, count: int) -> Asked:
        """Wait until there were so many requests; the last of them."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.asked) >= count, PATIENCE_S), f"only {len(self.asked)} requests"
            return self.asked[count - 1]

    def __enter__(self) -> Endpoint:
        self._thread.start()
        listening = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._talk, "127.0.0.1", self._port), self._loop
        )
        self._server = listening.result(PATIENCE_S)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        self._connections += 1
        number, ahead = self._connections, asyncio.ensure_future(reader.read(1))
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while first := await ahead:
                    asked = await _read(first, reader, number)
                    # What comes next on the connection: nothing before the answer is whole, unless the client leaves.
                    ahead = asyncio.ensure_future(reader.read(1))
                    if not await self._answer(asked, writer, ahead):
                        break
        finally:
            ahead.cancel()
            writer.close()
            self._talks.discard(task)

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter, ahead: asyncio.Future[bytes]) -> bool:
        """Whether the connection may be used again."""
        path = asked.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            self.looks.append(path)
            writer.write(_whole(self.look_status, self._told(path) if self.look_status == 200 else {}, {}))
            await writer.drain()
            return True
        with self._news:
            self.asked.append(asked)
            asked.number = len(self.asked)
            self._news.notify_all()
        saying = asyncio.ensure_future(self._say(self._script(asked), asked, writer))
        either: set[asyncio.Future[Any]] = {saying, ahead}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not saying.done():
            saying.cancel()
            asked.left.set()
        try:
            kept = await saying
        except (OSError, asyncio.CancelledError):
            asked.left.set()
            return False
        asked.answered.set()
        return kept

    def _told(self, path: str) -> object:
        if path.endswith("/models"):
            return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}
        if path.startswith("/open/"):
            self._gate(path.removeprefix("/open/")).set()
            return {}
        return [each.as_json() for each in self.asked]

    async def _say(self, reply: Reply, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        if reply.hang == "before":
            await asyncio.Event().wait()
        if reply.status != 200:
            error = {"message": f"scripted {reply.status}", "type": "scripted"} | dict(reply.error)
            writer.write(_whole(reply.status, {"error": error}, reply.headers))
            await writer.drain()
            return True
        writer.write(
            _head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"} | dict(reply.headers))
        )
        if reply.raw is not None:
            writer.write(_chunk(reply.raw) + _chunk(b""))
            await writer.drain()
            return True
        return await self._stream(reply, asked, writer)

    async def _stream(self, reply: Reply, asked: Asked, writer: asyncio.StreamWriter) -> bool:
        if reply.hang == "first":
            await writer.drain()
            await asyncio.Event().wait()
        writer.write(_event(asked, delta={"role": "assistant", "content": ""}))
        half = len(reply.text) // 2
        await _pieces(asked, writer, reply, reply.text[:half])
        if reply.hang == "within":
            await asyncio.Event().wait()
        if reply.gate:
            await self._gate(reply.gate).wait()
        if reply.ends == "cut":
            return False
        if reply.ends == "unfinished":
            writer.write(_chunk(b""))
            return True
        await _pieces(asked, writer, reply, reply.text[half:])
        writer.write(_event(asked, finish=reply.finish))
        if reply.hang == "after":
            await writer.drain()
            await asyncio.Event().wait()
        if reply.usage is not None and (asked.body.get("stream_options") or {}).get("include_usage"):
            used = _right(asked, reply.text) if reply.usage == "right" else dict(reply.usage)
            writer.write(_event(asked, usage=used))
        writer.write(b"" if reply.ends == "undone" else _chunk(b"data: [DONE]\n\n"))
        writer.write(_chunk(b""))
        await writer.drain()
        return True


async def _pieces(asked: Asked, writer: asyncio.StreamWriter, reply: Reply, text: str) -> None:
    await writer.drain()
    for at in range(0, len(text), reply.piece_chars):
        writer.write(_event(asked, delta={"content": text[at : at + reply.piece_chars]}))
        await writer.drain()
        if reply.gap_s:
            await asyncio.sleep(reply.gap_s)


def _in_turn(replies: Iterator[Reply]) -> Script:
    spent = Reply(status=500, error={"message": "the script has no more replies"})
    return lambda asked: next(replies, spent)


async def _read(first: bytes, reader: asyncio.StreamReader, connection: int) -> Asked:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(path=head[0].split()[1], headers=headers, body=json.loads(body or b"{}"), connection=connection)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Scripted')}", *(f"{n}: {v}" for n, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _whole(status: int, value: object, headers: Mapping[str, str]) -> bytes:
    body = json.dumps(value).encode()
    return _head(status, {"content-type": "application/json", "content-length": str(len(body))} | dict(headers)) + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(
    asked: Asked,
    *,
    delta: Mapping[str, str] | None = None,
    finish: str | None = None,
    usage: Mapping[str, object] | None = None,
) -> bytes:
    choices = [] if usage is not None else [{"index": 0, "delta": dict(delta or {}), "finish_reason": finish}]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": asked.body.get("model")}
    return _chunk(b"data: " + json.dumps(chunk | {"choices": choices, "usage": usage}).encode() + b"\n\n")


def _right(asked: Asked, text: str) -> dict[str, int]:
    # About as many as there are: what is exact, a test says itself.
    used_in, used_out = len(asked.prompt) // 4 + 1, len(text) // 4 + 1
    return {"prompt_tokens": used_in, "completion_tokens": used_out, "total_tokens": used_in + used_out}


def main() -> None:
    """Answer by the scenarios until SIGTERM or Ctrl-C; the first line printed is the base URL."""
    from tests.integration.models.scenarios import NAMES, answers_from, scenario

    parser = argparse.ArgumentParser(description=main.__doc__, epilog=f"Models: {', '.join(NAMES)}.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--answers", default="", help='a file: JSON [{"match": regex, "text": str, …}], the first wins')
    chosen = parser.parse_args()
    answers = answers_from(chosen.answers) if chosen.answers else ()
    stopping = threading.Event()
    for sort in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sort, lambda *_: stopping.set())
    endpoint = Endpoint(lambda asked: scenario(asked, answers), port=chosen.port)
    endpoint.models = NAMES
    with endpoint:
        print(endpoint.url, flush=True)  # noqa: T201 (what it is started for)
        stopping.wait()


if __name__ == "__main__":
    main()
