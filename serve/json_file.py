"""Large JSON as a file: an output or a result that is given by reference."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import Response, StreamingResponse

CHUNK_BYTES: Final = 256 * 1024
OUTPUT_TIMEOUT_S: Final = 600.0


def json_file(content: bytes, filename: str) -> Response:
    """JSON text as an attachment. ``filename`` must hold nothing that a header would have to quote."""
    headers = {
        "Content-Disposition": f'attachment; filename="{filename}"',
        "Content-Length": str(len(content)),
        "Content-Security-Policy": "sandbox",
    }
    return StreamingResponse(_chunks(content), headers=headers, media_type="application/json")


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
