"""One run in one sandbox of E2B, from the order to the result.

What comes back is believed no further than it must be: lengths, paths, counts and sizes are checked again here, and the
wall clock runs here.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rayloom.dag.errors import RayloomError, Refused, Transient
from rayloom.dag.values import Json
from rayloom.tools.sandbox.capture import Kept
from rayloom.tools.sandbox.conversation import Finds, as_object, exit_code_of, no_room, order_of
from rayloom.tools.sandbox.guardian import BEGUN, PLACE
from rayloom.tools.sandbox.leftovers import MAX_HEAD_BYTES
from rayloom.tools.sandbox.processes import MIB, resource_limits
from rayloom.tools.sandbox.remote import MARGIN_S, REQUEST_S, Service
from rayloom.tools.sandbox.result import result_of
from rayloom.tools.sandbox.sandbox import ENVIRONMENT, Output, RunResult, RunSpec
from rayloom.tools.sandbox.supervisor import Verdict

if TYPE_CHECKING:
    from e2b import AsyncCommandHandle, AsyncSandbox

START_S: Final = 30.0
LAST_WORDS_S: Final = 10.0
"""What a stopped program has left is brought out within so long, or not at all."""
SLOWEST_BYTES_PER_S: Final = 256 * 1024
MAX_PREAMBLE_CHARS: Final = 65_536
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
ROOT: Final = "root"
COMMAND: Final = f"exec python3 -I -S {PLACE}/guardian.py"

_NAME: Final = "rayloom.tools.sandbox.leftovers"


class RemoteRun:
    """One run in one sandbox. Whoever holds it kills the sandbox afterwards."""

    def __init__(self, service: Service, box: AsyncSandbox, spec: RunSpec) -> None:
        self._service, self._box, self._spec = service, box, spec
        keep_bytes = spec.limits.output_kb * 1024
        self.stdout = Kept(keep_bytes=keep_bytes, on_line=lambda line: spec.on_line("stdout", line))
        self.stderr = Kept(keep_bytes=keep_bytes, on_line=lambda line: spec.on_line("stderr", line))
        self._preambles = {"stdout": "", "stderr": ""}
        self._begun, self._flooded = asyncio.Event(), asyncio.Event()
        self._ended: dict[str, Json] | None = None
        self._handle: AsyncCommandHandle[None] | None = None
        self._over: asyncio.Future[None] | None = None

    @property
    def exit_code(self) -> int | None:
        """The program's exit code, as its guardian says; None where it says none that there can be."""
        return exit_code_of(self._ended)

    async def hold(self) -> RunResult:
        """Hand over the run, and listen to its end.

        Raises Refused (``SANDBOX_UNAVAILABLE``), Transient (``SANDBOX_START_FAILED``, and ``SANDBOX_LOST`` after the
        program has begun) and UserError (``FILES_TOO_LARGE``).
        """
        order = _order(self._spec)
        with self._service.errors("SANDBOX_START_FAILED"):
            # No message from inside is taken to be longer than any can be: the SDK itself would read all of it.
            self._box.commands._rpc._read_max_bytes = MAX_MESSAGE_BYTES
            await self._box.files.write_files(
                [
                    {"path": f"{PLACE}/guardian.py", "data": _guardian()},
                    {"path": f"{PLACE}/order", "data": order},
                ],
                user=ROOT,
                request_timeout=REQUEST_S + len(order) / SLOWEST_BYTES_PER_S,
            )
            self._handle = await self._box.commands.run(
                COMMAND,
                background=True,
                user=ROOT,
                cwd="/",
                stdin=True,
                timeout=START_S + self._spec.limits.wall_s + 4 * LAST_WORDS_S,
                request_timeout=START_S,
                on_stdout=self._taker("stdout"),
                on_stderr=self._taker("stderr"),
                retain_output=False,
            )
        self._over = asyncio.ensure_future(_over(self._handle))
        await _first(self._over, self._begun, within_s=START_S)
        if not self._begun.is_set():
            await self._tell_why_not(self._over)
        return await self._listen(self._handle, self._over)

    async def let_go(self) -> None:
        """Listen no more; never raises."""
        if self._over is not None:
            self._over.cancel()
            await asyncio.gather(self._over, return_exceptions=True)
        if self._handle is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await self._handle.disconnect()

    async def _listen(self, handle: AsyncCommandHandle[None], over: asyncio.Future[None]) -> RunResult:
        began_at = time.monotonic()
        await _first(over, self._flooded, within_s=self._spec.limits.wall_s)
        over_at = time.monotonic()
        verdict: Verdict = "exited"
        finds = Finds(self._spec)
        if over.done():
            with self._service.errors("SANDBOX_LOST"):
                over.result()
                await self._bring(finds)
            if self._ended is None:
                raise Transient("SANDBOX_LOST", "the sandbox ended before its program, or does not say how that ended")
            verdict = "memory" if self._ended.get("oom") is True else "exited"
        else:
            verdict = "flood" if self._flooded.is_set() else "timed_out"
            # How it ended is certain: we ended it. What it left comes out soon, or not at all.
            with suppress(RayloomError), self._service.errors("SANDBOX_LOST"):
                async with asyncio.timeout(LAST_WORDS_S):
                    await handle.send_stdin(b"k", request_timeout=LAST_WORDS_S)
                    await _first(over, within_s=LAST_WORDS_S)
                    if over.done():
                        over.result()
                        await self._bring(finds)
        self.stdout.finish()
        self.stderr.finish()
        files, left_out = finds.whole(self._ended)
        return result_of(
            self,
            self._spec,
            verdict,
            duration_ms=round((over_at - began_at) * 1000),
            files=files,
            left_out=left_out,
            backend="e2b",
        )

    async def _tell_why_not(self, over: asyncio.Future[None]) -> None:
        """Raise what it is that no program began."""
        if not over.done():
            raise Transient("SANDBOX_START_FAILED", f"the program did not begin within {START_S:g} s")
        with self._service.errors("SANDBOX_START_FAILED"):
            over.result()
        is_full = False
        # Where the guardian itself did not start there is nothing to read.
        with suppress(RayloomError), self._service.errors("SANDBOX_START_FAILED"):
            async with aclosing(self._frames()) as frames:
                is_full = any([letter == b"n" async for letter, _ in frames])
        if is_full:
            raise no_room()
        said = (self._preambles.get("stderr") or self.stderr.text()).strip()[-500:]
        raise Refused("SANDBOX_UNAVAILABLE", f"the template does not start the program's guardian: {said or 'no word'}")

    async def _bring(self, finds: Finds) -> None:
        """What the guardian has written down for us."""
        async with aclosing(self._frames()) as frames:
            async for letter, content in frames:
                if letter == b"f":
                    finds.begin(as_object(content))
                elif letter == b"d":
                    finds.add(content)
                elif letter == b"x":
                    self._ended = as_object(content)
                    return

    async def _frames(self) -> AsyncGenerator[tuple[bytes, bytes], None]:
        spec = self._spec
        most = spec.files_max_bytes + (spec.files_max_count + 2) * MAX_HEAD_BYTES + spec.files_max_bytes // 1024
        within_s = REQUEST_S + most / SLOWEST_BYTES_PER_S
        stream = await self._box.files.read(f"{PLACE}/out", format="stream", user=ROOT, request_timeout=within_s)
        data = bytearray()
        async with stream:
            async for piece in stream:
                most -= len(piece)
                if most < 0:
                    return
                data += piece
                at = 0
                while len(data) - at >= 5:
                    (length,) = struct.unpack_from(">I", data, at + 1)
                    if len(data) - at < 5 + length:
                        break
                    yield bytes(data[at : at + 1]), bytes(data[at + 5 : at + 5 + length])
                    at += 5 + length
                del data[:at]

    def _taker(self, stream: Output) -> Callable[[str], None]:
        """Takes output; what a profile of the template prints before the program begins is none."""
        kept = self.stdout if stream == "stdout" else self.stderr

        def take(text: str) -> None:
            if stream in self._preambles:
                before, sign, text = (self._preambles[stream] + text).partition(BEGUN.decode())
                if not sign:
                    self._preambles[stream] = before[-MAX_PREAMBLE_CHARS:]
                    return
                del self._preambles[stream]
                if not self._preambles:
                    self._begun.set()
            kept.feed(text.encode())
            if kept.flooded:
                self._flooded.set()

        return take


def lifetime_s(spec: RunSpec) -> float:
    """How long a machine must be there for a run at most: until it has begun, run, and handed over what it left."""
    moved_bytes = len(spec.source) + len(spec.stdin) + sum(map(len, spec.files.values())) + spec.files_max_bytes
    return spec.limits.wall_s + MARGIN_S + moved_bytes / SLOWEST_BYTES_PER_S


async def _over(handle: AsyncCommandHandle[None]) -> None:
    """Until the guardian ends, however; raises what the SDK raises when that can't be known."""
    from e2b import CommandExitException

    with suppress(CommandExitException):
        await handle.wait()


async def _first(over: asyncio.Future[None], *events: asyncio.Event, within_s: float) -> None:
    """Wait for the first of them, or so long."""
    waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait([over, *waiting], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@cache
def _guardian() -> str:
    """The program that runs there, in one file, with what it imports of ours."""
    leftovers, guardian = (Path(__file__).with_name(name).read_text() for name in ("leftovers.py", "guardian.py"))
    return (
        f"import sys, types\nmodule = sys.modules[{_NAME!r}] = types.ModuleType({_NAME!r})\n"
        f"exec({leftovers!r}, module.__dict__)\nexec({guardian!r})\n"
    )


def _order(spec: RunSpec) -> bytes:
    limits = spec.limits
    caps: dict[str, Json] = {
        **resource_limits(limits.disk_mb),
        "RLIMIT_NPROC": limits.pids,
        # A backstop behind the sampling of memory: programs reserve more than they use.
        "RLIMIT_AS": (4 * limits.memory_mb + 1_024) * MIB,
    }
    return order_of(
        spec,
        env=dict[str, Json](ENVIRONMENT),
        hosts=[[name, address] for name, address in spec.hosts.items()],
        limits=caps,
        memory=limits.memory_mb * MIB,
        disk_mb=limits.disk_mb,
        # Its own end, should we be gone by then.
        until_s=limits.wall_s + LAST_WORDS_S,
    )
