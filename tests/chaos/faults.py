"""Faults of the server itself: each answer of 500 with a body of ours, also one after which a client tried again."""

from __future__ import annotations

import threading

import httpx2

from rayloom.serve.answers import Busy, refusal
from tests.chaos.record import ServerFault


class ServerFaults:
    """All of them, so far. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[ServerFault] = []

    @property
    def seen(self) -> tuple[ServerFault, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(self._seen)

    def hear(self, response: httpx2.Response) -> None:
        """An answer came; its body has been read. What a proxy says in words of its own is no fault of ours."""
        if response.status_code != 500:
            return
        error = refusal(response)
        if isinstance(error, Busy):
            request = response.request
            fault = ServerFault(method=request.method, path=request.url.path, detail=error.problem.detail)
            with self._lock:
                self._seen.append(fault)

    def transport(self, inner: httpx2.BaseTransport | None = None) -> httpx2.BaseTransport:
        """What a client is to speak through, so that each of its answers is heard. The client closes it."""
        return _Heard(self, inner or httpx2.HTTPTransport(trust_env=False))


class _Heard(httpx2.BaseTransport):
    def __init__(self, faults: ServerFaults, inner: httpx2.BaseTransport) -> None:
        self._faults, self._inner = faults, inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._inner.handle_request(request)
        if response.status_code == 500:
            response.request = request
            response.read()
            self._faults.hear(response)
        return response

    def close(self) -> None:
        self._inner.close()
