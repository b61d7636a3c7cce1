"""An MCP server over HTTP in bare JSON-RPC that answers as a bad network or a bad server would: `mcp_rude.py PORT`."""

from __future__ import annotations

import gzip
import json
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOOLS = ("drop", "half", "huge", "never", "packed", "silent", "status", "well")
greeted: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._send(200, b"")

    def do_GET(self) -> None:
        self._send(405, b"")

    def do_DELETE(self) -> None:
        self._send(200, b"")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if request["method"] == "notifications/cancelled":
            self._wait()
            return
        if "id" not in request:
            self._send(202, b"")
            return
        params = request.get("params") or {}
        result: Any = {}
        if request["method"] == "initialize":
            greeted.append("")
            info = {"name": "rude", "version": "0"}
            result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
        elif request["method"] == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
        elif request["method"] == "tools/call":
            text = self._called(params["name"], params.get("arguments") or {})
            if text is None:
                return
            result = {"content": [{"type": "text", "text": text}]}
        elif request["method"] != "ping":
            answer = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no such method"}}
            self._send(200, json.dumps(answer).encode())
            return
        self._send(200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode())

    def _called(self, name: str, arguments: dict[str, Any]) -> str | None:
        """What a tool says; None where the answer is sent already, or never will be."""
        if name == "well":
            return str(len(greeted))
        if name == "status":
            body = arguments.get("body", "<p>no</p>")
            self._send(arguments["status"], body.encode(), kind=arguments.get("kind", "text/html"))
        elif name == "never":
            self._wait()
        elif name == "huge":
            self._send(200, b'"' + b"x" * arguments["bytes"] + b'"')
        elif name == "packed":
            self._send(200, gzip.compress(b"x" * 1_000_000), encoding="gzip")
        elif name == "half":
            self._send(200, b"{", size=1_000)
            self._end()
        elif name == "silent":
            self._send(200, b"", kind="text/event-stream", size=0)
        else:
            self._end()
        return None

    def _wait(self) -> None:
        """Answer nothing, for as long as somebody waits for it."""
        self.rfile.read(1)
        self.close_connection = True

    def _end(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _send(
        self, status: int, body: bytes, *, kind: str = "application/json", encoding: str = "", size: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body) if size is None else size))
        self.send_header("mcp-session-id", "of-the-day")
        if encoding:
            self.send_header("content-encoding", encoding)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
