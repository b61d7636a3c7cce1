"""The parts of the container sandbox that need no engine: streams, frames, what is believed, whose a container is."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import struct
import tarfile
import time

import pytest

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools.sandbox import container, image, owner
from rayloom.tools.sandbox.container import Shape
from rayloom.tools.sandbox.conversation import Finds
from rayloom.tools.sandbox.engine import Demux, Engine, EngineError
from rayloom.tools.sandbox.frames import MAX_FRAME_BYTES, Frames
from rayloom.tools.sandbox.pool import Pool
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.settings import SandboxLimits


def piece(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


def frame(letter: bytes, data: bytes = b"") -> bytes:
    return letter + struct.pack(">I", len(data)) + data


def test_streams_are_parted_however_they_come() -> None:
    whole = piece(1, b"out") + piece(2, b"") + piece(2, b"err") + piece(1, b"put")
    for size in (1, 3, 8, 9, len(whole)):
        demux = Demux()
        found = {1: b"", 2: b""}
        for start in range(0, len(whole), size):
            for stream, data in demux.feed(whole[start : start + size]):
                found[stream] += data
        assert found == {1: b"output", 2: b"err"}


async def _read(sent: bytes) -> tuple[list[tuple[bytes, bytes]], Frames]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        writing = asyncio.ensure_future(asyncio.to_thread(_write, theirs, sent))
        frames = Frames(ours)
        found = [each async for each in frames.read()]
        ours.close()
        await writing
    return found, frames


def _write(end: socket.socket, data: bytes) -> None:
    try:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        assert len(data) > MAX_FRAME_BYTES, "only what is too much is not read to its end"


async def test_frames_are_put_together_across_pieces() -> None:
    said = frame(b"o", b"x" * 100_000) + frame(b"r") + frame(b"x", b"{}")
    sent = b"".join(piece(1, said[at : at + 7_000]) + piece(2, b"!") for at in range(0, len(said), 7_000))
    found, frames = await _read(sent)
    assert found == [(b"o", b"x" * 100_000), (b"r", b""), (b"x", b"{}")]
    assert frames.complaint.text() == "!" * 15
    assert not frames.broken


async def test_a_frame_that_claims_too_much_ends_the_conversation() -> None:
    found, frames = await _read(piece(1, frame(b"r") + b"o" + struct.pack(">I", MAX_FRAME_BYTES + 1)) + piece(1, b"x"))
    assert found == [(b"r", b"")]
    assert frames.broken


async def test_a_wait_given_up_loses_nothing() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        frames = Frames(ours)
        whole = piece(1, frame(b"o", b"all of it"))
        theirs.sendall(whole[:12])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(frames.read())
        theirs.sendall(whole[12:])
        assert await anext(frames.read()) == (b"o", b"all of it")


def finds(*, count: int = 3, room: int = 10, given: dict[str, bytes] | None = None) -> Finds:
    limits = SandboxLimits()
    return Finds(
        RunSpec(
            program="shell", source=b"", limits=limits, files=given or {}, files_max_count=count, files_max_bytes=room
        )
    )


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", None, 7, "a\x00b", "x" * 600])
def test_a_file_with_a_path_that_no_workspace_takes_is_left_out(path: Json) -> None:
    found = finds()
    found.begin({"path": path})
    found.add(b"x")
    files, left_out = found.whole({})
    assert files == {}
    assert len(left_out) == 1


def test_files_past_the_caps_are_not_kept_whatever_is_sent() -> None:
    many = finds(count=1)
    for name in ("a", "b"):
        many.begin({"path": name})
        many.add(b"x")
    files, left_out = many.whole({})
    assert (list(files), left_out) == (["a"], ["b"])
    large = finds(room=2)
    large.begin({"path": "a"})
    large.add(b"xxx")
    assert large.whole({})[0] == {}


def test_files_of_a_run_that_did_not_come_to_its_end_are_not_believed() -> None:
    found = finds(given={"same": b"1"})
    for name, data in (("same", b"1"), ("new", b"2")):
        found.begin({"path": name})
        found.add(data)
    assert list(found.whole({})[0]) == ["new"]
    assert found.whole(None)[0] == {}


def test_an_absurd_number_of_files_left_out_is_no_absurd_list() -> None:
    _, left_out = finds().whole({"left_out": {"count": 10**12, "first": ["a"]}})
    assert len(left_out) <= 20_000


def test_an_owner_that_lives_is_no_orphan_s() -> None:
    ours = owner.labels()
    assert not owner.is_orphan(ours)
    assert owner.is_orphan({**ours, owner.PROCESS: f"{os.getpid()}:1"})  # its pid is another's now
    expired = {owner.EXPIRES: str(int(time.time()) - 1)}
    assert not owner.is_orphan({**ours, **expired})  # who made it lives: a run may be allowed to take long
    elsewhere = {**ours, owner.PLACE: "elsewhere", owner.PROCESS: "1:1"}
    assert not owner.is_orphan(elsewhere)
    assert owner.is_orphan({**elsewhere, **expired})
    assert owner.is_orphan({owner.SANDBOX: "1"})


async def _engine(answer: bytes, path: str) -> asyncio.Server:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_unix_server(reply, path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'HTTP/1.0 200 OK\r\nA: b\r\n\r\n{"a": [1]}', {"a": [1]}),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\n\r\nOK\n", "OK"),
        (b'HTTP/1.1 409 Conflict\r\n\r\n{"message": "not now"}', EngineError),
        (b"HTTP/1.1 500 Oh\r\n\r\nbroken", EngineError),
        (b"SSH-2.0\r\n\r\n", Transient),
        (b"", Transient),
    ],
)
async def test_answers_of_an_engine(answer: bytes, expected: object, tmp_path: object) -> None:
    path = f"{tmp_path}/engine.sock"
    async with await _engine(answer, path):
        asking = Engine(f"unix://{path}").ask("GET", "/info")
        if isinstance(expected, type) and issubclass(expected, Exception):
            with pytest.raises(expected):
                await asking
        else:
            assert await asking == expected


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (404, "No such image", Refused),
        (400, 'exec: "python3": executable file not found in $PATH', Refused),
        (500, 'exec: "python3": executable file not found in $PATH', Refused),
        (500, "context deadline exceeded", Transient),
        (500, "runc create failed: container init was OOM-killed (memory limit too low?)", UserError),
    ],
)
async def test_an_engine_that_makes_no_container(
    status: int, message: str, expected: type[Exception], tmp_path: object
) -> None:
    path = f"{tmp_path}/engine.sock"
    answer = b'HTTP/1.0 %d X\r\n\r\n{"message": "%s"}' % (status, message.replace('"', '\\"').encode())
    async with await _engine(answer, path):
        with pytest.raises(expected, match=r"starts no sandbox|512 MiB are too few"):
            await container.start(Engine(f"unix://{path}"), Shape.of("any", "", SandboxLimits()))


async def test_a_pool_that_is_closed_makes_nothing() -> None:
    pool = Pool(Engine("unix:///nowhere.sock"), most=2)
    shape = Shape.of("any", "", SandboxLimits())
    pool.close()
    pool.refill(shape)
    assert pool.is_settled()
    assert pool.take(shape) is None


async def test_an_engine_that_is_silent_is_not_waited_for_for_ever(tmp_path: object) -> None:
    path = f"{tmp_path}/engine.sock"
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(path)
    silent.listen()
    with silent, pytest.raises(Transient, match=r"did not answer"):
        await Engine(f"unix://{path}").ask("GET", "/info", within_s=0.05)


async def test_no_engine_is_a_reason_not_a_wait() -> None:
    with pytest.raises(Refused, match="no container engine answers"):
        await Engine("unix:///nowhere.sock").ask("GET", "/info")


def test_the_image_holds_a_python_a_shell_and_nothing_of_the_user() -> None:
    with tarfile.open(fileobj=io.BytesIO(image.archive())) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {"usr/bin/python3", "usr/bin/sh", "usr/bin/cat", "workspace", "run/code", "etc/passwd"} <= set(entries)
    assert any(name.endswith("/asyncio/__init__.py") for name in entries)
    assert not [name for name in entries if name.startswith(("root/", "home/", "var/")) or "site-packages" in name]
    assert not [name for name, entry in entries.items() if entry.mode & 0o6000]
    assert not [name for name, entry in entries.items() if not (entry.isreg() or entry.isdir() or entry.issym())]
