"""What the sandboxes of E2B alone promise: what is asked for, what is made of each answer, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from pydantic import SecretStr

from rayloom.cluster.cli import program
from rayloom.dag.errors import RayloomError, Refused, Transient
from rayloom.dag.values import Json
from rayloom.tools import addresses
from rayloom.tools.sandbox import measures, owner
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.remote import MARGIN_S, REQUEST_S, Service
from rayloom.tools.sandbox.sandbox import RunResult, RunSpec
from rayloom.tools.sandbox.tidy import tidy
from rayloom.tools.settings import SandboxLimits, ToolSettings
from tests.integration.tools import e2b_rig
from tests.integration.tools.e2b_rig import misbehaving
from tests.integration.tools.sandboxes import eventually, ids_only, run
from tests.integration.tools.wheels import store_of_its_own

pytestmark = ids_only

HELLO = RunSpec(program="python", source=b"print('hello')", limits=SandboxLimits())
FOR_EVER = RunSpec(program="shell", source=b"echo up; sleep 1000", limits=SandboxLimits())


@pytest.fixture
def e2b() -> Iterator[E2b]:
    """A sandbox of its own; nothing runs before it, and nothing after it."""
    assert e2b_rig.machines() == {}
    yield E2b(e2b_rig.settings())
    assert e2b_rig.machines() == {}


def _begun(e2b: E2b, started: asyncio.Event) -> asyncio.Future[RunResult]:
    spec = RunSpec(program="shell", source=FOR_EVER.source, limits=FOR_EVER.limits, on_line=lambda *_: started.set())
    return asyncio.ensure_future(e2b.run(spec))


async def test_a_machine_is_asked_for_that_reaches_nothing_and_ends_by_itself(e2b: E2b) -> None:
    with misbehaving():
        await e2b.run(HELLO)
        (asked,) = e2b_rig.seen()
    assert asked["templateID"] == "base"
    # And what 16 MiB of files may take on a slow line.
    assert asked["timeout"] == HELLO.limits.wall_s + MARGIN_S + 64 + 1
    assert asked["autoPause"] is False
    assert asked["allow_internet_access"] is False
    assert asked["network"] == {"denyOut": ["0.0.0.0/0"], "allowPublicTraffic": False}
    assert asked["metadata"].items() >= {k: v for k, v in owner.labels().items() if k != owner.EXPIRES}.items()
    assert MARGIN_S < int(asked["metadata"][owner.EXPIRES]) - time.time() <= asked["timeout"] + MARGIN_S + 1


async def test_to_look_starts_no_machine_and_costs_nothing(e2b: E2b) -> None:
    with misbehaving():
        report = await E2b(e2b_rig.settings(), tries=False).probe()
        assert e2b_rig.seen() == []
    assert (report.backend, report.isolated) == ("e2b", True)
    assert "`rayloom sandbox check` runs a program there" in report.notes[-1]
    with pytest.raises(Transient):
        await E2b(e2b_rig.settings(api_url="http://127.0.0.1:1"), tries=False).probe()
    with pytest.raises(Refused, match="is RAYLOOM_E2B_API_KEY right"):
        await E2b(e2b_rig.settings(api_key=SecretStr("e2b_" + "1" * 40)), tries=False).probe()


async def test_names_that_it_may_reach_are_resolved_here_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(_host: str, _port: int) -> list[addresses.Address]:
        return [ip_address("2606:2800::1"), ip_address("93.184.215.14")]

    monkeypatch.setattr(addresses, "_look_up", look_up)
    with misbehaving():
        allow: Json = {"allow": ["example.com:443", "example.com:80"]}
        output = await run("e2b", code="print(open('/etc/hosts').read().split())", network=allow)
        (asked,) = e2b_rig.seen()
    assert output["stdout"] == "['93.184.215.14', 'example.com']\n"
    assert "allow_internet_access" not in asked
    assert asked["network"] == {
        "allowOut": ["example.com"],
        "denyOut": ["0.0.0.0/0"],
        "dnsServers": [],
        "allowPublicTraffic": False,
    }


async def test_a_service_that_does_not_understand_about_the_network_runs_nothing(e2b: E2b) -> None:
    with misbehaving(forgets_the_network=True), pytest.raises(Refused, match="from the network as it was asked"):
        await e2b.run(HELLO)
    named = replace(HELLO, hosts={"example.com": "93.184.215.14"})
    with misbehaving(forgets_name_servers=True), pytest.raises(Refused, match="from the network as it was asked"):
        await e2b.run(named)
    for spec in (HELLO, named):
        with misbehaving(forgets_public_traffic=True), pytest.raises(Refused, match="as it was asked"):
            await e2b.run(spec)


async def test_a_profile_that_talks_is_not_the_program(e2b: E2b) -> None:
    with misbehaving(talks=True):
        result = await e2b.run(HELLO)
    assert (result.stdout, result.stderr, result.exit_code) == ("hello\n", "", 0)


async def test_a_wrong_key_is_refused_and_never_told() -> None:
    wrong = "e2b_" + "77" * 20
    with pytest.raises(Refused, match="is RAYLOOM_E2B_API_KEY right") as error:
        await E2b(e2b_rig.settings(api_key=SecretStr(wrong))).run(HELLO)
    assert error.value.code == "SANDBOX_UNAVAILABLE"
    echo = {"status": 403, "message": f"no such key: {e2b_rig.KEY}", "times": 9}
    with misbehaving(create=echo), pytest.raises(Refused, match=r"no such key: \*\*\*"):
        await E2b(e2b_rig.settings()).run(HELLO)


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(400, "refused"), (403, "refused"), (404, "refused"), (409, "transient"), (429, "transient"), (500, "transient"),
     (503, "transient"), (507, "transient")],
)  # fmt: skip
async def test_what_the_service_says_is_told_for_what_it_is(e2b: E2b, status: int, error_class: str) -> None:
    because = {"status": status, "message": "because", "times": 9}
    with misbehaving(create=because), pytest.raises(RayloomError, match="because") as error:
        await e2b.run(HELLO)
    assert error.value.error_class == error_class


async def test_what_passes_is_tried_again_within_bounds(e2b: E2b) -> None:
    with misbehaving(create={"status": 429, "message": "busy", "times": 1, "headers": {"retry-after": "1"}}):
        assert (await e2b.run(HELLO)).stdout == "hello\n"
    with misbehaving(create={"status": 429, "message": "busy", "times": 9, "headers": {"retry-after": "3600"}}):
        began = time.monotonic()
        with pytest.raises(Transient):
            await e2b.run(HELLO)
        assert time.monotonic() - began < 2 * REQUEST_S


async def test_nobody_there_is_no_endless_wait() -> None:
    with pytest.raises(Transient) as error:
        await E2b(e2b_rig.settings(api_url="http://127.0.0.1:1")).run(HELLO)
    assert error.value.code == "SANDBOX_START_FAILED"


async def test_somebody_else_s_server_is_no_bug_of_ours() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(RayloomError) as error:
            await E2b(e2b_rig.settings(api_url=f"http://127.0.0.1:{port}")).run(HELLO)
    assert error.value.error_class in ("transient", "refused")


async def test_a_template_without_python_says_so() -> None:
    with pytest.raises(Refused, match=r"does not start the program's guardian: .*python3.*not found"):
        await E2b(e2b_rig.settings(template="empty")).run(HELLO)
    with pytest.raises(Refused, match="template 'nothing' not found"):
        await E2b(e2b_rig.settings(template="nothing")).run(HELLO)


async def test_a_full_disk_there_is_the_files_fault(e2b: E2b) -> None:
    with misbehaving(full=True), pytest.raises(RayloomError) as error:
        await e2b.run(HELLO)
    assert (error.value.code, error.value.error_class) == ("FILES_TOO_LARGE", "user")


async def test_a_machine_that_is_lost_in_the_middle_is_tried_again(e2b: E2b) -> None:
    with misbehaving(vanish=True), pytest.raises(Transient) as error:
        await e2b.run(FOR_EVER)
    assert error.value.code == "SANDBOX_LOST"


async def test_a_machine_killed_from_outside_is_lost_too(e2b: E2b) -> None:
    started = asyncio.Event()
    running = _begun(e2b, started)
    await started.wait()
    (identifier,) = e2b_rig.machines()
    assert await Service(e2b_rig.settings()).kill(identifier)
    with pytest.raises(Transient) as error:
        await running
    assert error.value.code == "SANDBOX_LOST"


async def test_a_stopped_run_has_no_machine(e2b: E2b) -> None:
    started = asyncio.Event()
    running = _begun(e2b, started)
    await started.wait()
    running.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < FOR_EVER.limits.wall_s
    assert e2b_rig.machines() == {}


async def test_a_machine_that_comes_after_its_run_was_stopped_is_killed(e2b: E2b) -> None:
    with misbehaving(slow=True):
        running = asyncio.ensure_future(e2b.run(HELLO))
        await eventually(e2b_rig.coming)
        running.cancel()
        await asyncio.sleep(0)
        assert not running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert e2b_rig.machines() == {}


async def test_a_machine_that_hears_no_word_is_stopped_all_the_same(e2b: E2b, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayloom.tools.sandbox.remote_run.LAST_WORDS_S", 0.5)
    spec = RunSpec(program="shell", source=FOR_EVER.source, limits=SandboxLimits(wall_s=5))
    with misbehaving(deaf=True):
        result = await e2b.run(spec)
    assert (result.timed_out, result.exit_code, result.stdout, result.files) == (True, 137, "up\n", {})


async def test_stages_are_told(e2b: E2b) -> None:
    runs: list[measures.Run] = []
    measures.listen(runs.append)
    try:
        await e2b.run(HELLO)
    finally:
        measures.ignore(runs.append)
    (told,) = runs
    assert (told.backend, told.warm) == ("e2b", False)
    assert told.total_s >= (told.first_output_s or 0) >= told.start_s > 0


_DIES = """
import asyncio, sys
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.settings import E2bSettings, SandboxLimits
told = lambda *_: print("up", flush=True)
spec = RunSpec(program="shell", source=b"echo up; sleep 1000", limits=SandboxLimits(), on_line=told)
asyncio.run(E2b(E2bSettings(api_key=sys.argv[1], api_url=sys.argv[2], sandbox_url=sys.argv[2])).run(spec))
"""


async def test_machines_of_a_killed_worker_are_found_and_removed_and_no_others(e2b: E2b) -> None:
    asked = [sys.executable, "-c", _DIES, e2b_rig.KEY, e2b_rig.url()]
    worker = await asyncio.create_subprocess_exec(*asked, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"up\n"
    assert len(e2b_rig.machines()) == 1
    assert await e2b.sweep() == 0, "its owner lives"
    started = asyncio.Event()
    running = _begun(e2b, started)
    await started.wait()
    worker.send_signal(signal.SIGKILL)
    await worker.wait()
    assert len(e2b_rig.machines()) == 2
    with store_of_its_own():
        assert await tidy(ToolSettings(sandbox="e2b")) == {}, "there is no key to look with"
        assert await tidy(ToolSettings(sandbox="e2b", e2b=e2b_rig.settings())) == {"machines elsewhere": 1}
    (left,) = e2b_rig.machines().values()
    assert left[owner.PROCESS] == owner.labels()[owner.PROCESS]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_sweep_that_fails_keeps_no_run_from_running(e2b: E2b) -> None:
    with misbehaving(list={"status": 500, "message": "no list", "times": 9}):
        assert (await e2b.run(HELLO)).stdout == "hello\n"


@pytest.mark.parametrize(("key", "code"), [(e2b_rig.KEY, 0), ("e2b_" + "77" * 20, 1)])
def test_it_is_tried_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, code: int
) -> None:
    given: dict[str, Any] = {
        "RAYLOOM_SANDBOX": "e2b",
        "E2B_API_KEY": key,
        "E2B_API_URL": e2b_rig.url(),
        "E2B_SANDBOX_URL": e2b_rig.url(),
    }
    monkeypatch.delenv("RAYLOOM_TEST_DOCKER_ADDRESS", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert program.run(["sandbox", "check", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert key not in str(found)
    assert found["state"] == ("warn" if code else "ok")
    assert e2b_rig.url() in found["detail"]
    if not code:
        assert found["detail"].startswith("e2b 2.")
        assert "template base" in found["detail"]
