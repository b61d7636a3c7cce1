"""MCP servers that want to know who calls: a token that is given, and one that OAuth gives for credentials."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from rayloom.dag.errors import Transient
from rayloom.dag.mcp import McpServer
from rayloom.dag.values import JsonObject
from tests.integration.mcp_servers import DEMO, serving
from tests.integration.ports import free_ports
from tests.integration.tools.mcp_rig import GENEROUS_S, Rig, connected, until

GUARDED = str(Path(DEMO).with_name("mcp_guarded.py"))


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def address(key: ec.EllipticCurvePrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    [port] = free_ports(1)
    public = tmp_path_factory.mktemp("guarded") / "key.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with serving(port, sys.executable, GUARDED, str(port), str(public)):
        yield f"http://127.0.0.1:{port}"


def guarded(address: str, auth: JsonObject | None, **headers: str) -> McpServer:
    return McpServer(name="it", transport="http", url=f"{address}/mcp", auth=auth, headers=headers)


def credentials(address: str, secret: str) -> JsonObject:
    return {"type": "oauth_client_credentials", "client_id": "rayloom", "client_secret": secret, "issuer": address}


def with_key(address: str, key: str) -> JsonObject:
    fields = {"private_key": key, "algorithm": "ES256", "issuer": address}
    return {"type": "oauth_private_key_jwt", "client_id": "rayloom", **fields}


async def test_a_token_goes_with_each_request(address: str) -> None:
    for server in (
        guarded(address, {"type": "bearer", "token": "token-of-the-day"}),
        guarded(address, None, Authorization="Bearer token-of-the-day"),
    ):
        async with connected(server) as rig:
            assert await rig.call("whoami") == {"result": "you"}


async def test_oauth_gives_a_token_for_the_credentials_of_a_client(address: str) -> None:
    async with connected(guarded(address, credentials(address, "correct-horse"))) as rig:
        assert await rig.call("whoami") == {"result": "you"}


async def test_who_has_a_token_of_oauth_waits_for_no_other_request(address: str) -> None:
    async with connected(guarded(address, credentials(address, "correct-horse"))) as rig:
        never = asyncio.create_task(rig.call("never", timeout_s=GENEROUS_S))
        await until(lambda: len(rig.session.calls) == 1)
        assert await asyncio.gather(*(rig.call("whoami") for _ in range(3))) == [{"result": "you"}] * 3
        assert not never.done()
        never.cancel()
        await asyncio.wait({never})


async def test_oauth_gives_a_token_for_what_the_key_of_a_client_signed(
    address: str, key: ec.EllipticCurvePrivateKey
) -> None:
    async with connected(guarded(address, with_key(address, pem(key)))) as rig:
        assert await rig.call("whoami") == {"result": "you"}


@pytest.mark.parametrize("kind", ["none", "wrong token", "wrong secret", "another issuer", "wrong key", "no key"])
async def test_without_the_right_one_there_is_no_session(address: str, kind: str) -> None:
    auth: dict[str, JsonObject | None] = {
        "none": None,
        "wrong token": {"type": "bearer", "token": "incorrect-horse"},
        "wrong secret": credentials(address, "incorrect-horse"),
        "wrong key": with_key(address, pem(ec.generate_private_key(ec.SECP256R1()))),
        "no key": with_key(address, "incorrect-horse"),
        "another issuer": {**credentials(address, "correct-horse"), "issuer": "https://else.where"},
    }
    rig = Rig(guarded(address, auth[kind]))
    rig.session.start()
    try:
        with pytest.raises(Transient) as error:
            await rig.session.first()
        assert "incorrect-horse" not in error.value.message
    finally:
        await rig.session.stop()
