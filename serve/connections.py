"""Connections of Serve's proxy: uvicorn's, with a time-out for headers, and JSON where HTTP itself is malformed."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any, ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from rayloom.serve.problems import Problem
from rayloom.serve.settings import MIB

LINGER_S: Final = 1.0
"""How long a refused client may go on sending: a connection that is closed at once can lose the answer."""


class Connection(HttpToolsProtocol):
    """One connection of a client. The time-outs are seconds."""

    headers_s: ClassVar[float] = 10.0
    """How long the headers of a request may take, all in all."""
    drain_s: ClassVar[float] = 15.0
    """How long the rest of a body may take that was answered before it had arrived."""
    max_header_bytes: ClassVar[int] = 64 * 1024
    """Of the request line, the headers and the trailers of one request."""
    max_body_bytes: ClassVar[int] = 1025 * MIB
    """Serve's proxy reads the body of a request even where the app does not, and keeps it in memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # rayloom has no WebSockets. A request for one is answered like any other, in JSON.
        self.ws_protocol_class = None
        self.url = b""
        self._is_in_headers = self._is_in_message = self._is_refused = False
        # Requests that are not answered yet: uvicorn tells only the last one that its client has gone.
        self._open: list[RequestResponseCycle] = []
        self._header_bytes = self._body_bytes = self._raw_bytes = 0
        self._headers_timer: TimerHandle | None = None
        self._drain_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the time-out for the headers."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all time-outs, and tell every request that its client has gone."""
        self._stop_timers()
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless the client was refused."""
        if not self._is_refused:
            self._raw_bytes += len(data)
            super().data_received(data)
            self._expect_more()

    def _expect_more(self) -> None:
        """Set the time-out for what comes next. Refuse bytes without end that are neither headers nor body."""
        if self._is_refused or self.transport.is_closing():
            return
        # The parser reports no header, trailer or extension of a chunk before it has ended.
        if self._is_in_message and self._raw_bytes > self.max_header_bytes:
            self.send_400_response("")
            return
        is_waiting = self.timeout_keep_alive_task is not None or self._drain_timer is not None
        if not is_waiting and not self._is_answering():
            # Between two requests: the start of the next one, or stray line ends, which are no request.
            self._await_headers()

    def send_400_response(self, msg: str) -> None:
        """Refuse malformed HTTP."""
        if not self._is_refused:
            self._refuse(Problem(400, "this is not a valid HTTP/1.1 request", code="MALFORMED"))

    # What the parser reports; an exception refuses the request.

    def on_message_begin(self) -> None:
        """Expect headers."""
        # The message before may have ended in these same bytes, and begun to wait for this one.
        self._unset_keepalive_if_required()
        super().on_message_begin()
        self._is_in_headers = self._is_in_message = True
        self._header_bytes = self._body_bytes = self._raw_bytes = 0
        self._await_headers()

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL. Raises ValueError when it is too large."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header or a trailer. Raises ValueError when they are too large."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. Raises ValueError for another version of HTTP."""
        self._is_in_headers = False
        self._stop_timers()
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise ValueError("this is another version of HTTP")
        super().on_headers_complete()
        self._open = [cycle for cycle in self._open if not cycle.response_complete]
        self._open.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless the answer has begun. Raises ValueError when it is too large."""
        self._raw_bytes = 0
        if self.cycle.response_started:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self.max_body_bytes:
            detail = f"the body is larger than {self.max_body_bytes:,} bytes"
            self._refuse(Problem(413, detail, code="BODY_TOO_LARGE"))
            raise ValueError(detail)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body. Expect the next request if this one was answered before."""
        self._is_in_message = False
        super().on_message_complete()
        if self._drain_timer is not None:
            self._stop_timers()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Expect the next request, or the rest of the body for a short time only."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._drain_timer = self.loop.call_later(self.drain_s, self.transport.close)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > self.max_header_bytes:
            raise ValueError("the headers are too large")

    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _expects_answer(self) -> bool:
        """Return whether the client would take an answer for that of the request that it sends now."""
        if not self._is_answering():
            return self._drain_timer is None
        is_arriving = self.cycle.more_body and not self._is_in_headers
        return is_arriving and not self.cycle.response_started and not self.pipeline

    def _await_headers(self) -> None:
        if self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.headers_s, self._headers_late)

    def _headers_late(self) -> None:
        self._headers_timer = None
        if self._is_answering():
            # The client sent the start of another request meanwhile; the answer of the first one comes first.
            self._await_headers()
        elif self._is_in_headers:
            detail = f"the headers of the request did not arrive within {self.headers_s:g} s"
            self._refuse(Problem(408, detail, code="HEADERS_TOO_SLOW"))
        else:
            self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._headers_timer, self._drain_timer):
            if timer is not None:
                timer.cancel()
        self._headers_timer = self._drain_timer = None

    def _disconnect(self) -> None:
        for cycle in self._open:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _refuse(self, problem: Problem) -> None:
        """Answer, where the client expects it, and close."""
        expects_answer = self._expects_answer()
        self._is_refused = True
        self._stop_timers()
        self._disconnect()
        if not expects_answer:
            self.transport.close()
            return
        response = problem.response(self.url.partition(b"?")[0].decode("latin-1"))
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._drain_timer = self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()
