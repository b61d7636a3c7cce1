"""The Python client of the REST API: what the command line, the batch entry and the demonstration speak through.

One class, synchronous and typed. It does what every caller would otherwise have to get right for itself: an
``Idempotency-Key`` on every submission, back-off with ``Retry-After``, and event streams that survive a restart of the
API by resuming after the last event seen. What it raises stands in ``rayloom.serve.answers``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

import httpx2
import orjson

from rayloom.dag.errors import Transient
from rayloom.dag.values import Json, JsonObject
from rayloom.serve.answers import Busy, Unreachable, document_of, object_of, refusal, text_of
from rayloom.serve.parameters import Params, body_of, header_of, query_of, segment
from rayloom.serve.patience import BACKOFF_MAX_S, Patience

TERMINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
SERVER_FAULTS_MAX: Final = 5
"""A request that is answered 500 so many times in a row is given up: that is no overload, waiting won't mend it."""
STREAM_SILENCE_S: Final = 60.0
"""A stream that says nothing for so long, not even a comment, is taken for dead and resumed."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """An accepted submission; ``replayed`` when the Idempotency-Key was known already."""

    task_id: str
    replayed: bool
    body: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One server-sent event: its id (empty if it has none), its name, its data."""

    id: str
    name: str
    data: JsonObject


class Client:
    """A connection to one rayloom API as one user. Safe to share between threads; close it, or use ``with``.

    ``patience_s`` is how long requests that may be sent twice are tried again when nobody answers or the answer is
    "not now"; ``stream_patience_s`` is the same for an event stream that breaks off. Both count from the first failure
    in a row. ``clock`` and ``pause`` are for tests.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_s: float | None = 30.0,
        patience_s: float = 0.0,
        stream_patience_s: float = 120.0,
        connections: int = 100,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s, self._stream_patience_s = patience_s, stream_patience_s
        self._clock = clock
        self._pause = pause if pause is not None else threading.Event().wait
        headers = {"Accept": "application/json", "User-Agent": "rayloom-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {header_of('the API key (RAYLOOM_API_KEY)', api_key)}"
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s, connect=5.0, pool=None),
            limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            # A proxy from the environment can't reach this machine's own loopback.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    # -- tasks ---------------------------------------------------------------------------------------------------

    def submit(self, body: Mapping[str, Json], *, idempotency_key: str | None = None) -> Submitted:
        """Submit a task. Without a key one is made, so that a lost answer never makes a second task."""
        return self._make("/api/v1/tasks", body, idempotency_key or _new_key())

    def fork(self, task_id: str, body: Mapping[str, Json]) -> Submitted:
        """Make a new task of what another one has completed. A lost answer never makes a second one."""
        return self._make(f"/api/v1/tasks/{segment(task_id)}/fork", body, _new_key())

    def _make(self, path: str, body: Mapping[str, Json], key: str) -> Submitted:
        response = self._send(
            "POST", path, body=dict(body), headers={"Idempotency-Key": header_of("an idempotency key", key)}, again=True
        )
        accepted = object_of(response)
        replayed = response.headers.get("Idempotent-Replayed", "").lower() == "true"
        return Submitted(task_id=text_of(accepted, "task_id"), replayed=replayed, body=accepted)

    def task(self, task_id: str) -> JsonObject:
        """A task's details and progress, with its first 1,000 subtasks."""
        return self.get(f"/api/v1/tasks/{segment(task_id)}")

    def tasks(self, params: Params | None = None) -> JsonObject:
        """One page of my tasks, newest first: ``{items, next_cursor}``."""
        return self.get("/api/v1/tasks", params)

    def subtask(self, task_id: str, subtask: str) -> JsonObject:
        """One subtask, with its input and attempts."""
        return self.get(f"/api/v1/tasks/{segment(task_id)}/subtasks/{segment(subtask)}")

    def waiting(self, task_id: str, subtask: str) -> JsonObject:
        """Why a subtask is not running yet."""
        return self.get(f"/api/v1/tasks/{segment(task_id)}/subtasks/{segment(subtask)}/waiting")

    def cancel(self, task_id: str) -> JsonObject:
        """Cancel a task. Raises Rejected (409) when it has ended otherwise."""
        return object_of(self._send("POST", f"/api/v1/tasks/{segment(task_id)}/cancel", again=True))

    def approve(self, task_id: str, *, subtask: str | None = None) -> JsonObject:
        """Approve a subtask, or all that waits. Raises Rejected (409) when nothing does."""
        return self._decide(task_id, "approve", {} if subtask is None else {"subtask": subtask})

    def reject(self, task_id: str, reason: str, *, subtask: str | None = None) -> JsonObject:
        """Reject a subtask, or all that waits. Raises Rejected (409) when nothing does."""
        return self._decide(task_id, "reject", {"reason": reason} | ({} if subtask is None else {"subtask": subtask}))

    def _decide(self, task_id: str, verb: str, body: Mapping[str, Json]) -> JsonObject:
        return self.post(f"/api/v1/tasks/{segment(task_id)}/{verb}", body)

    def logs(self, task_id: str, params: Params | None = None) -> Iterator[JsonObject]:
        """A task's log as it is now, oldest first, page by page."""
        return self.pages(f"/api/v1/tasks/{segment(task_id)}/logs", params)

    def trace(self, task_id: str, *, form: str | None = None) -> JsonObject | list[Json]:
        """A task's trace: spans, or an export when ``form`` is ``otlp`` or ``chrome``."""
        return document_of(self._send("GET", f"/api/v1/tasks/{segment(task_id)}/trace", params={"format": form}))

    def get(self, path: str, params: Params | None = None) -> JsonObject:
        """A GET of any route that answers an object. Raises Rejected, Busy, Unreachable."""
        return object_of(self._send("GET", path, params=params))

    def post(self, path: str, body: Mapping[str, Json], params: Params | None = None) -> JsonObject:
        """A POST that is sent once only, whatever comes back."""
        return object_of(self._send("POST", path, params=params, body=dict(body), again=False))

    def patch(self, path: str, body: Mapping[str, Json]) -> JsonObject:
        """Change something; the JSON object that comes back."""
        return object_of(self._send("PATCH", path, body=dict(body), again=False))

    def put(self, path: str, body: Mapping[str, Json]) -> JsonObject:
        """Set something as a whole; the JSON object that comes back."""
        return object_of(self._send("PUT", path, body=dict(body), again=True))

    def delete(self, path: str) -> JsonObject:
        """A DELETE; an empty answer gives ``{}``."""
        return object_of(self._send("DELETE", path, again=False))

    def pages(self, path: str, params: Params | None = None) -> Iterator[JsonObject]:
        """Every page of a list, following ``next_cursor`` to the end."""
        query = dict(params or {})
        while True:
            page = self.get(path, query)
            yield page
            cursor = page.get("next_cursor")
            if not isinstance(cursor, str) or not cursor:
                return
            query["cursor"] = cursor

    # -- streams -------------------------------------------------------------------------------------------------

    def events(self, task_id: str, *, after: str = "") -> Iterator[StreamEvent]:
        """Every transition of a task after an event id, as they happen, until the task has ended.

        Broken connections are resumed with ``Last-Event-ID``: nothing is given twice, nothing is left out. Raises
        Unreachable or Busy when the API stays away longer than ``stream_patience_s``.
        """
        return self._stream(task_id, f"/api/v1/tasks/{segment(task_id)}/events", {}, after)

    def follow_logs(self, task_id: str, params: Params | None = None, *, after: str = "") -> Iterator[StreamEvent]:
        """A task's log from its beginning (or after a line's id), and on as it is written, until the task has ended."""
        query = {**(params or {}), "follow": True}
        return self._stream(task_id, f"/api/v1/tasks/{segment(task_id)}/logs", query, after)

    def _stream(self, task_id: str, path: str, params: Params, after: str) -> Iterator[StreamEvent]:
        patience = Patience(self._stream_patience_s, self._clock, self._pause)
        last, ended, draining = after, False, False
        while True:
            try:
                for event in self._connect(path, params, last, patience):
                    patience.reset()
                    if _is_number(event.id) and _is_number(last) and int(event.id) <= int(last):
                        continue
                    last = event.id or last
                    if event.name == "task":
                        ended = event.data.get("to") in TERMINAL
                    yield event
                # A server that shuts down closes its streams too: only the task's own state says that this is the
                # end, and what happened between the last event and that state is fetched by one more connection.
                if ended or draining:
                    return
                draining = self.task(task_id).get("status") in TERMINAL
                if not draining:
                    raise Unreachable(f"the event stream of task {task_id} closes again and again")
            except Transient as error:
                patience.wait_or_raise(error)

    def _connect(self, path: str, params: Params, last: str, patience: Patience) -> Iterator[StreamEvent]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last:
            headers["Last-Event-ID"] = last
        timeout = httpx2.Timeout(STREAM_SILENCE_S, connect=5.0, pool=None)
        query = query_of(params)
        try:
            with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                opened_at = self._clock()
                try:
                    for event in httpx2.EventSource(response):
                        if event.data:
                            data = orjson.loads(event.data)
                            shown = data if isinstance(data, dict) else {}
                            yield StreamEvent(id=event.id, name=event.event, data=shown)
                finally:
                    # One that stayed open was answered well, though there was nothing to tell.
                    if self._clock() - opened_at > BACKOFF_MAX_S:
                        patience.reset()
        except (httpx2.RequestError, orjson.JSONDecodeError) as error:
            raise self._unreachable(error) from error

    # -- one request ---------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: JsonObject | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool | None = None,
    ) -> httpx2.Response:
        patience = Patience(self._patience_s, self._clock, self._pause)
        repeatable = method == "GET" if again is None else again
        server_faults = 0
        content = body_of(body)
        extra = {**(headers or {}), **({} if content is None else {"Content-Type": "application/json"})}
        query = query_of(params or {})
        while True:
            try:
                response = self._http.request(method, path, params=query, content=content, headers=extra)
                if not response.is_success:
                    raise refusal(response)
                return response
            except httpx2.InvalidURL as error:
                raise Unreachable(f"{self.url} is not an address: {error}") from error
            except httpx2.RequestError as error:
                failure: Transient = self._unreachable(error)
                failure.__cause__ = error
            except Transient as error:
                failure = error
            server_faults += isinstance(failure, Busy) and failure.problem.status == 500
            if not repeatable or server_faults >= SERVER_FAULTS_MAX:
                raise failure
            patience.wait_or_raise(failure)

    def _unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"can't reach rayloom at {self.url}: {str(error) or type(error).__name__}")


def _new_key() -> str:
    from uuid_utils.compat import uuid7

    return str(uuid7())


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit()
