"""A service, or a machine, that lies to us: about sizes, paths and ends, and with more than anybody should read."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from dataclasses import replace

import pytest

from rayloom.dag.errors import Transient, UserError
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.remote import REQUEST_S
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec
from rayloom.tools.settings import SandboxLimits
from tests.integration.tools import e2b_rig
from tests.integration.tools.sandboxes import ids_only

pytestmark = ids_only

HELLO = RunSpec(program="python", source=b"print('hello')", limits=SandboxLimits(), files_max_bytes=1_000)


def frame(letter: bytes, data: bytes) -> bytes:
    return letter + struct.pack(">I", len(data)) + data


def file(path: object, data: bytes) -> bytes:
    return frame(b"f", json.dumps({"path": path, "size": 1}).encode()) + frame(b"d", data)


def end(**said: object) -> bytes:
    return frame(b"x", json.dumps({"exit_code": 0, "oom": False, **said}).encode())


async def told(*frames: bytes, spec: RunSpec = HELLO) -> RunResult:
    with e2b_rig.misbehaving(lies=base64.b64encode(b"".join(frames)).decode()):
        result = await E2b(e2b_rig.settings()).run(spec)
    assert e2b_rig.machines() == {}
    return result


async def test_names_that_lead_elsewhere_do_not_come_back() -> None:
    names = ["../up", "/etc/passwd", "a/../../b", "", 7, None, ["x"], "a\0b", "good", "good", "~root", "c\\d"]
    result = await told(*(file(name, b"!") for name in names), end())
    assert {path: each.data for path, each in result.files.items()} == {"good": b"!"}
    assert result.truncated
    assert "11 files left out" in result.stderr


async def test_more_than_may_come_back_does_not() -> None:
    many = replace(HELLO, files_max_count=3)
    result = await told(*(file(str(n), b"!") for n in range(9)), end(), spec=many)
    assert list(result.files) == ["0", "1", "2"]
    result = await told(file("large", b"x" * 1_001), end())
    assert result.files == {}


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (file("a", b"!"),),
        (b"f\xff\xff\xff\xff{}",),
        (file("a", b"x" * 20_000_000), end()),
        (b"\0" * 9_000_000,),
        (b"f",),
    ],
    ids=["nothing", "no end", "a length that never comes", "too much before the end", "no frames", "half a head"],
)
async def test_without_a_last_word_it_is_lost(frames: tuple[bytes, ...]) -> None:
    with pytest.raises(Transient) as error:
        await told(*frames)
    assert error.value.code == "SANDBOX_LOST"
    assert e2b_rig.machines() == {}


async def test_files_that_find_no_room_there_are_their_author_s_fault() -> None:
    no_room = base64.b64encode(frame(b"n", b"No space left on device")).decode()
    with e2b_rig.misbehaving(lies=no_room), pytest.raises(UserError) as error:
        await E2b(e2b_rig.settings(template="empty")).run(HELLO)
    assert error.value.code == "FILES_TOO_LARGE"
    assert e2b_rig.machines() == {}


@pytest.mark.parametrize("code", [-1, 256, 10**30, "0", None, True, 1.5, [0]])
async def test_an_exit_code_that_there_can_not_be_is_none(code: object) -> None:
    result = await told(end(exit_code=code))
    assert result.exit_code == (1 if code is True else 137)


async def test_what_is_left_out_is_counted_within_bounds() -> None:
    result = await told(end(left_out={"count": 10**12, "first": ["x" * 9_999]}))
    assert "20000 files left out" in result.stderr
    assert len(result.stderr) < 1_000
    assert (await told(end(left_out="all"))).files == {}


async def test_output_without_end_is_stopped_here() -> None:
    spec = replace(HELLO, limits=SandboxLimits(output_kb=16, wall_s=60))
    with e2b_rig.misbehaving(endless=True):
        result = await E2b(e2b_rig.settings()).run(spec)
    assert (result.exit_code, result.truncated, result.timed_out) == (137, True, False)
    assert len(result.stdout) <= 16 * 1024
    assert "printed without end" in result.stderr


async def test_files_of_a_stopped_program_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.tools.sandbox.remote_run.LAST_WORDS_S", 2.0)
    spec = replace(HELLO, source=b"while True: pass", limits=SandboxLimits(wall_s=2))
    with e2b_rig.misbehaving(holds_files_back=True):
        # A request for them may itself take longer.
        async with asyncio.timeout(REQUEST_S):
            result = await E2b(e2b_rig.settings()).run(spec)
    assert (result.timed_out, result.files) == (True, {})
    assert e2b_rig.machines() == {}


async def test_a_message_longer_than_any_can_be_is_not_waited_for() -> None:
    with e2b_rig.misbehaving(long_message=True), pytest.raises(Transient) as error:
        await E2b(e2b_rig.settings()).run(HELLO)
    assert error.value.code == "SANDBOX_LOST"
    assert e2b_rig.machines() == {}
