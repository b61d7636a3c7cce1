"""An MCP server in bare JSON-RPC, of the older revision, that does what servers should not do, but do."""

from __future__ import annotations

import json
import sys
from typing import Any

TOOLS = [
    {"name": "broken", "inputSchema": {"type": "object"}, "outputSchema": {"type": "object", "required": ["n"]}},
    {"name": "Ünusual name!", "inputSchema": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}},
    {"name": "crash", "inputSchema": {"type": "object"}},
]
if "bad-schema" in sys.argv:
    TOOLS.append({"name": "bad", "inputSchema": {"type": "object", "properties": {"a": {"type": "any"}}}})
if "taken" in sys.argv:
    TOOLS.append({"name": "taken", "inputSchema": {"type": "object"}})
if "slow-schema" in sys.argv:
    # Each letter more doubles the time that it takes.
    forever = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
    TOOLS.append({"name": "slow-schema", "inputSchema": {"type": "object"}, "outputSchema": forever})


def answer(method: str, params: Any) -> Any:
    """The result of a request; an error where it is an exception."""
    if method == "initialize":
        info = {"name": "odd", "version": "0"}
        return {"protocolVersion": "2025-11-25", "capabilities": {"tools": {"listChanged": True}}, "serverInfo": info}
    if method == "tools/list":
        # One tool a page.
        at = int(params.get("cursor") or 0)
        page: dict[str, Any] = {"tools": TOOLS[at : at + 1]}
        return page if at + 1 == len(TOOLS) else {**page, "nextCursor": str(at + 1)}
    if method == "tools/call" and params["name"] == "crash":
        raise RuntimeError("Internal error")
    if method == "tools/call" and params["name"] == "slow-schema":
        return {"content": [], "structuredContent": {"text": "a" * 60 + "!"}}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
    if method == "ping":
        return {}
    raise LookupError(f"Method not found: {method}")


sys.stdout.write("I am a server, and print what I like\n")
for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
    try:
        reply["result"] = answer(request["method"], request.get("params") or {})
    except LookupError as error:
        reply["error"] = {"code": -32601, "message": str(error)}
    except RuntimeError as error:
        reply["error"] = {"code": -32603, "message": str(error)}
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
