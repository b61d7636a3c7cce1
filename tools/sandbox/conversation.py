"""One run in one container, from the order to the result.

What comes from inside is read by frames and believed no further than it must be: lengths, paths, counts and sizes are
checked again here, and the wall clock runs here.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Final

import orjson

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.paths import workspace_path
from rayloom.tools.sandbox import workspace
from rayloom.tools.sandbox.capture import Kept
from rayloom.tools.sandbox.container import START_S, Container, too_little_memory, was_out_of_memory
from rayloom.tools.sandbox.result import result_of
from rayloom.tools.sandbox.sandbox import OutFile, RunResult, RunSpec
from rayloom.tools.sandbox.supervisor import Verdict

LAST_WORDS_S: Final = 5.0
"""What a stopped program has left is brought out within so long, or not at all."""


class Conversation:
    """One run in one container. Whoever holds it discards the container afterwards."""

    def __init__(self, container: Container, spec: RunSpec) -> None:
        self._container, self._spec = container, spec
        keep_bytes = spec.limits.output_kb * 1024
        self.stdout = Kept(keep_bytes=keep_bytes, on_line=lambda line: spec.on_line("stdout", line))
        self.stderr = Kept(keep_bytes=keep_bytes, on_line=lambda line: spec.on_line("stderr", line))
        self._finds = Finds(spec)
        self._verdict: Verdict | None = None
        self._ended: dict[str, Json] | None = None
        self._began_at: float | None = None
        self._over_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the container said its last word, and so ends by itself."""
        return self._ended is not None

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, as the container says; None where it says none that there can be."""
        return exit_code_of(self._ended)

    async def hold(self) -> RunResult:
        """Hand over the run, and listen to its end.

        Raises Transient (``SANDBOX_START_FAILED``) when the container ends before the program begins, and UserError
        (``FILES_TOO_LARGE``, ``LIMITS_TOO_SMALL``).
        """
        sending = asyncio.ensure_future(self._send(order_of(self._spec)))
        frames = self._container.frames.read()
        try:
            await self._listen(frames)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if self._began_at is None:
            if await was_out_of_memory(self._container):
                raise too_little_memory(self._container.shape.memory_mb)
            raise Transient("SANDBOX_START_FAILED", "the container ended before the program began")
        self.stdout.finish()
        self.stderr.finish()
        over_at = self._over_at or time.monotonic()
        files, left_out = self._finds.whole(self._ended)
        return result_of(
            self,
            self._spec,
            await self._judged(),
            duration_ms=round((over_at - self._began_at) * 1000),
            files=files,
            left_out=left_out,
            backend="docker",
        )

    async def _listen(self, frames: AsyncIterator[tuple[bytes, bytes]]) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    letter, content = await anext(frames)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if self._began_at is None or self._verdict is not None:
                    return
                # It is told to stop, and has a little longer to bring out what there is.
                self._stop("timed_out")
                until = time.monotonic() + LAST_WORDS_S
                frames = self._container.frames.read()
                continue
            if letter == b"b":
                self._began_at = time.monotonic()
                until = self._began_at + self._spec.limits.wall_s
            elif letter == b"n":
                raise no_room()
            elif letter == b"x":
                self._ended = as_object(content)
                return
            else:
                self._take(letter, content)
                if letter in (b"f", b"d") and self._over_at is None:
                    self._over_at = time.monotonic()
                    until = max(until, self._over_at + LAST_WORDS_S)
            if self._verdict is None and (self.stdout.flooded or self.stderr.flooded):
                self._stop("flood")
                until = time.monotonic() + LAST_WORDS_S

    def _take(self, letter: bytes, content: bytes) -> None:
        if letter in (b"o", b"e"):
            (self.stdout if letter == b"o" else self.stderr).feed(content)
        elif letter == b"f":
            self._finds.begin(as_object(content))
        elif letter == b"d":
            self._finds.add(content)

    def _stop(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._over_at = time.monotonic()
        # One byte into an empty buffer never waits. Where the stream is gone, so is the program.
        with suppress(OSError):
            self._container.stream.send(b"k")

    async def _send(self, data: bytes) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._container.stream, data)

    async def _judged(self) -> Verdict:
        if self._verdict is not None:
            return self._verdict
        if self._ended is not None:
            return "memory" if self._ended.get("oom") is True else "exited"
        # The warden itself is gone: only the engine can know why.
        return "memory" if await was_out_of_memory(self._container) else "broken"


class Finds:
    """The files that a container brings out, checked as if an enemy had sent them."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._files: dict[str, bytearray] = {}
        self._current: bytearray | None = None
        self._room = spec.files_max_bytes
        self._left_out: list[str] = []

    def begin(self, head: Mapping[str, Json]) -> None:
        """The next file."""
        self._current = None
        path = head.get("path")
        try:
            checked = workspace_path(path) if isinstance(path, str) else ""
        except UserError:
            checked = ""
        if not checked or checked in self._files or len(self._files) >= self._spec.files_max_count:
            self._left_out.append(str(path)[:200])
            return
        self._current = self._files[checked] = bytearray()

    def add(self, data: bytes) -> None:
        """The next piece of it."""
        self._room -= len(data)
        if self._current is not None and self._room >= 0:
            self._current += data

    def whole(self, ended: Mapping[str, Json] | None) -> tuple[dict[str, OutFile], list[str]]:
        """The files that are new or changed, and the paths left out; none when it did not come to its end."""
        if ended is None or self._room < 0:
            return {}, self._left_out
        files = {
            path: OutFile(data=bytes(data), media_type=workspace.media_type(path))
            for path, data in sorted(self._files.items())
            if bytes(data) != self._spec.files.get(path)
        }
        more = ended.get("left_out")
        count, first = (more.get("count"), more.get("first")) if isinstance(more, dict) else (0, [])
        if isinstance(count, int) and isinstance(first, list):
            shown = [str(path) for path in first]
            self._left_out += shown + ["…"] * (min(count, workspace.MAX_ENTRIES) - len(shown))
        return files, self._left_out


def as_object(content: bytes) -> dict[str, Json]:
    """A JSON object that came from inside; empty where it is none."""
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(content)
        if isinstance(found, dict):
            return found
    return {}


def exit_code_of(ended: Mapping[str, Json] | None) -> int | None:
    """The exit code in a guardian's last word; None where it says none that there can be."""
    code = (ended or {}).get("exit_code")
    return code if isinstance(code, int) and 0 <= code <= 255 else None


def no_room() -> UserError:
    """The error of a run whose guardian found no room for what it was handed."""
    return UserError("FILES_TOO_LARGE", "/files: they don't fit into the workspace, or /stdin doesn't fit beside it")


def order_of(spec: RunSpec, **more: Json) -> bytes:
    """A run as it is handed to its guardian: the length of a head in JSON, the head, and what that tells the sizes of.

    ``more``: what this guardian has to know beside that.
    """
    head = orjson.dumps(
        {
            "program": spec.program,
            "source": len(spec.source),
            "stdin": len(spec.stdin),
            "files": [[path, len(data)] for path, data in spec.files.items()],
            "max_count": spec.files_max_count,
            "max_bytes": spec.files_max_bytes,
            **more,
        }
    )
    return b"".join((struct.pack(">I", len(head)), head, spec.source, spec.stdin, *spec.files.values()))
