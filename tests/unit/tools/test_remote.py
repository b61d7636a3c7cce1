"""What of sandboxes elsewhere needs no service: who is refused before anything leaves this place, and the order."""

from __future__ import annotations

import ast
import struct
import sys
from ipaddress import ip_address
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.dag.values import Json
from rayloom.tools import addresses
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.call import call_tool
from rayloom.tools.sandbox import remote_network, remote_run
from rayloom.tools.sandbox.e2b import E2b
from rayloom.tools.sandbox.remote import Service
from rayloom.tools.sandbox.sandbox import RunSpec
from rayloom.tools.sandbox.select import Auto, sandbox_for
from rayloom.tools.settings import E2bSettings, SandboxLimits
from tests.unit.tools.context import make_context

KEY = "e2b_" + "ab" * 20
# Nobody listens there: whoever is refused was refused here.
NOWHERE = E2bSettings(api_key=SecretStr(KEY), api_url="http://127.0.0.1:1", sandbox_url="http://127.0.0.1:1")
EMPTY = RunSpec(program="shell", source=b"", limits=SandboxLimits(disk_mb=1))


def test_it_is_chosen_by_its_name_only() -> None:
    assert isinstance(sandbox_for("e2b", e2b=NOWHERE), E2b)
    auto = sandbox_for("auto", e2b=NOWHERE)
    assert isinstance(auto, Auto)
    assert not any(isinstance(each, E2b) for each in vars(auto).values())


async def test_without_a_key_nothing_is_asked() -> None:
    for asked in (E2b(E2bSettings()).probe(), E2b(E2bSettings()).run(EMPTY)):
        with pytest.raises(Refused, match="set RAYLOOM_E2B_API_KEY, or E2B_API_KEY") as error:
            await asked
        assert error.value.code == "SANDBOX_UNAVAILABLE"


async def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each == "e2b" or each.startswith("e2b.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "e2b", None)
    with pytest.raises(Refused, match=r"needs the SDK of E2B.*pip install 'e2b>=2\.63,<3'") as error:
        await E2b(NOWHERE).run(EMPTY)
    assert error.value.code == "SANDBOX_UNAVAILABLE"


def test_the_key_is_in_no_text() -> None:
    service = Service(NOWHERE)
    assert KEY not in f"{NOWHERE!r}{NOWHERE.model_dump_json()}"
    assert service.plain(ValueError(f"bad {KEY} {'x' * 999}")) == "ValueError: bad *** " + "x" * 480
    assert "bad" in Service(E2bSettings()).plain(ValueError("bad"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_sdk_is_told_all_that_it_would_look_for_itself(scheme: str) -> None:
    options = Service(E2bSettings(api_url=f"{scheme}://x", sandbox_url=f"{scheme}://y")).options
    assert options["debug"] is False, "or no machine is made and none killed"
    assert options["http_version"] == ("2" if scheme == "https" else "1.1")
    assert (options["api_url"], options["sandbox_url"]) == (f"{scheme}://x", f"{scheme}://y")
    assert Service(E2bSettings(sandbox_url="http://y")).options["http_version"] == "1.1"
    cloud = Service(E2bSettings(domain="e2b.example")).options
    assert (cloud["api_url"], cloud["domain"]) == ("https://api.e2b.example", "e2b.example")
    assert "sandbox_url" not in cloud


async def test_what_can_not_go_along_is_refused_here() -> None:
    sandbox = E2b(NOWHERE)
    for folder in ("egress", "packages"):
        with pytest.raises(Refused, match="can't be seen in a sandbox elsewhere"):
            await sandbox.run(RunSpec(program="shell", source=b"", limits=EMPTY.limits, **{folder: Path("/x")}))  # type: ignore[arg-type]  # either of two
    with pytest.raises(UserError) as error:
        await sandbox.run(RunSpec(program="shell", source=b"", limits=EMPTY.limits, files={"a": bytes((1 << 20) + 1)}))
    assert error.value.code == "FILES_TOO_LARGE"


@pytest.mark.parametrize(
    ("input", "code"),
    [
        ({"packages": ["numpy"]}, "PACKAGES_REFUSED"),
        ({"network": {"allow": ["example.com:443"]}}, "NETWORK_REFUSED"),
        ({"network": {"allow": ["*.example.com:443"]}}, "NETWORK_INVALID"),
    ],
)
async def test_a_call_for_what_is_not_there_is_refused(input: dict[str, Json], code: str) -> None:
    context = make_context(sandbox="e2b", e2b=NOWHERE, sandbox_packages_dir=Path("/nowhere"))
    with pytest.raises((Refused, UserError)) as error:
        await call_tool(BUILTINS["shell.run"], {"command": "true", **input}, context)
    assert error.value.code == code


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({("a.example", 443)}, "list a.example:80 and a.example:443"),
        ({("a.example", 80)}, "list a.example:80 and a.example:443"),
        ({("a.example", 80), ("a.example", 443), ("a.example", 22)}, "at no other"),
        ({("a.example", 80), ("a.example", 443), ("b.example", 5432)}, "list b.example:80"),
        ({("93.184.215.14", 80), ("93.184.215.14", 443)}, "opens all ports of an address"),
        ({("2606:2800::1", 80), ("2606:2800::1", 443)}, "opens all ports of an address"),
    ],
)
async def test_what_nothing_would_hold_a_program_to_is_refused(targets: set[tuple[str, int]], said: str) -> None:
    with pytest.raises(Refused, match=said) as error:
        await remote_network.hosts(frozenset(targets))
    assert error.value.code == "NETWORK_REFUSED"


@pytest.mark.parametrize(
    ("found", "given"),
    [
        (["2606:2800::1", "93.184.215.14", "93.184.215.15"], "93.184.215.14"),
        (["93.184.215.14", "10.0.0.1"], "ADDRESS_REFUSED"),
        (["169.254.169.254"], "ADDRESS_REFUSED"),
        (["2606:2800::1"], "NETWORK_REFUSED"),
        ([], "DNS_FAILED"),
    ],
)
async def test_names_are_resolved_once_and_to_public_addresses(
    monkeypatch: pytest.MonkeyPatch, found: list[str], given: str
) -> None:
    asked = []

    async def look_up(host: str, port: int) -> list[addresses.Address]:
        asked.append((host, port))
        if not found:
            raise Transient("DNS_FAILED", host)
        return [ip_address(each) for each in found]

    monkeypatch.setattr(addresses, "_look_up", look_up)
    listed = frozenset({("a.example", 80), ("a.example", 443)})
    if given.isupper():
        with pytest.raises((Refused, Transient)) as error:
            await remote_network.hosts(listed)
        assert error.value.code == given
    else:
        assert await remote_network.hosts(listed) == {"a.example": given}
    assert len(asked) == 1


def test_the_order_holds_all_of_a_run() -> None:
    spec = RunSpec(
        program="python", source=b"code", stdin=b"in", files={"a/b": b"xy", "c": b""}, hosts={"h": "1.2.3.4"},
        limits=SandboxLimits(pids=7, memory_mb=3, disk_mb=2, wall_s=1), files_max_count=5, files_max_bytes=6,
    )  # fmt: skip
    order = remote_run._order(spec)
    (length,) = struct.unpack_from(">I", order)
    head = orjson.loads(order[4 : 4 + length])
    assert order[4 + length :] == b"codeinxy"
    assert (head["source"], head["stdin"], head["files"]) == (4, 2, [["a/b", 2], ["c", 0]])
    assert (head["hosts"], head["memory"], head["disk_mb"]) == ([["h", "1.2.3.4"]], 3 << 20, 2)
    assert (head["limits"]["RLIMIT_NPROC"], head["max_count"], head["max_bytes"]) == (7, 5, 6)


def test_what_is_sent_along_runs_on_an_old_python() -> None:
    ast.parse(remote_run._guardian(), feature_version=(3, 8))
    for name in ("guardian.py", "leftovers.py"):
        ast.parse(Path(remote_run.__file__).with_name(name).read_text(), feature_version=(3, 8))
