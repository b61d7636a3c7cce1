"""Everything that a plan calls, on the loopback, and slow on purpose: each call takes as long as it is told to.

Pages to fetch and an address to post to (``/call/…``), and a model behind an OpenAI-compatible endpoint, which writes
the plans that it was given at a fixed speed, and thinks as long as a call takes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final

CHARS_PER_S: Final = 120
"""About 30 tokens a second: a hosted model of some size. One of one's own on two cores writes a tenth of that."""
_PIECE_CHARS: Final = 6
_PLANS: Final = "You plan work."
"""How the splitter begins what it tells a model."""
_pause = threading.Event().wait


class SlowWorld:
    """Serves while it is entered. ``plans``: what the model answers to a prompt that names one of these.

    ``last_token_at``: by the same names, when the last of a plan was written, in seconds of the clock.
    """

    def __init__(self, plans: Mapping[str, str], *, call_s: float) -> None:
        self.plans, self.call_s = plans, call_s
        self.last_token_at: dict[str, float] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Handler,), {"world": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, name="slow world", daemon=True)

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> SlowWorld:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: SlowWorld

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        """A page, or what models there are."""
        if self.path.endswith("/models"):
            self._whole({"object": "list", "data": [{"id": "slow", "object": "model"}]})
            return
        _pause(self.world.call_s)
        self._whole({"ok": True})

    def do_POST(self) -> None:
        """A call, or a question to the model."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not self.path.endswith("/chat/completions"):
            _pause(self.world.call_s)
            self._whole({"ok": True})
            return
        asked = "\n".join(str(message["content"]) for message in json.loads(body)["messages"])
        name = next((each for each in self.world.plans if each in asked), "") if _PLANS in asked else ""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if name:
            self._write(self.world.plans[name])
            self.world.last_token_at[name] = time.time()
        else:
            _pause(self.world.call_s)
            self._event({"content": "Done."})
        self._event({}, finish="stop")
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _write(self, plan: str) -> None:
        began_at = time.monotonic()
        for at in range(0, len(plan), _PIECE_CHARS):
            self._event({"content": plan[at : at + _PIECE_CHARS]})
            # By the clock, so that a slow machine does not make a slow model.
            _pause(max(0.0, began_at + (at + _PIECE_CHARS) / CHARS_PER_S - time.monotonic()))

    def _event(self, delta: Mapping[str, str], *, finish: str | None = None) -> None:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}
        self._chunk(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _whole(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
