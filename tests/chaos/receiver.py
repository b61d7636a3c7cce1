"""What a run calls outside: the target of `http.request`, which breaks down now and then, and the receiver of webhooks.

Nothing kills it: what it was asked is a ledger like that of the drill.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Literal, Self

import orjson

from rayloom.dag import webhook
from tests.chaos.record import Call, Heard

SECRET: Final = webhook.derived_secret("chaos", "everybody")
TELLS_MAX: Final = 2
"""So often a webhook is refused, or its answer lost, at most: each time the next one takes five times as long."""
WELL: Final = (6, 30)
"""So many calls the target answers well before it breaks down."""
ILL: Final = (6, 8)
"""So many it refuses then: enough for a breaker to open, and for a probe or two to fail."""
_Fate = Literal["heard", "refused", "lost"]


class Outside:
    """What was asked outside, and what is answered. Safe to share between threads."""

    def __init__(self, seed: int) -> None:
        self._chance, self._lock = random.Random(f"{seed}/receiver"), threading.Lock()
        self._calls: list[Call] = []
        self._heard: list[Heard] = []
        self._unheard: dict[str, int] = {}
        self._is_down, self._left = False, self._chance.randint(*WELL)

    @property
    def calls(self) -> list[Call]:
        """Every request of the tool, so far."""
        with self._lock:
            return list(self._calls)

    @property
    def heard(self) -> list[Heard]:
        """Every webhook, so far; not those that it refused."""
        with self._lock:
            return list(self._heard)

    def call(self, key: str) -> int:
        """The tool calls with this idempotency key; the status to answer."""
        with self._lock:
            # By calls and not by time: however slow a machine is, a breaker has cause to open, and to close again.
            if not self._left:
                self._is_down = not self._is_down
                self._left = self._chance.randint(*(ILL if self._is_down else WELL))
            self._left -= 1
            status = 503 if self._is_down else 200
            self._calls.append(Call(sub_task_id=key, at=time.time(), status=status))
        return status

    def hear(self, headers: dict[str, str], body: bytes) -> _Fate:
        """A webhook; what comes of it. Of some the answer is lost, so that they have to come again."""
        event = orjson.loads(body)
        id_ = headers["webhook-id"]
        with self._lock:
            fate: _Fate = self._chance.choices(["heard", "refused", "lost"], [6, 1, 1])[0]  # type: ignore[assignment]  # one of these
            if fate != "heard":
                self._unheard[id_] = self._unheard.get(id_, 0) + 1
                if self._unheard[id_] > TELLS_MAX:
                    fate = "heard"
            if fate != "refused":
                self._heard.append(
                    Heard(
                        id=id_,
                        task_id=event["data"]["task_id"],
                        task_status=event["data"]["status"],
                        body=hashlib.sha256(body).hexdigest()[:16],
                        is_signed=event["id"] == id_ and is_signed(headers, body),
                    )
                )
        return fate


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """Whether the signature is that of the secret which every task of a run is submitted with."""
    key = webhook.secret_bytes(SECRET)
    assert key is not None
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal():
        return False
    right = webhook.headers(key, webhook_id=headers["webhook-id"], timestamp=int(timestamp), body=body)
    return headers.get("webhook-signature") == right["webhook-signature"]


class Receiver:
    """It, by HTTP. Use it as a context manager."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self._server = _Server(outside)
        self._thread = threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, outside: Outside) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outside = outside

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that was killed in the middle is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        """``/call`` or ``/hook``."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        if self.path == "/hook":
            fate = self.server.outside.hear(headers, body)
            if fate != "lost":
                self._answer(503 if fate == "refused" else 204)
        else:
            self._answer(self.server.outside.call(headers.get("idempotency-key", "")))

    def log_message(self, format: str, *args: Any) -> None:
        """It keeps a ledger, not a log."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
