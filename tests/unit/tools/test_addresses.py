"""Every spelling of a private address is refused, and what an administrator allows is allowed, no more."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.tools.addresses import AddressRules, addresses_of, is_localhost, is_public, parse_url

NONE = AddressRules.parse(())


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.7",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::1"])
def test_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://127.0.0.1:70/",
        "example.com",
        "//example.com/",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:pass@example.com/",
        "http://@example.com/",
        "http://0177.0.0.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://127.1/",
        "http://127.0.1/",
        "http://1.2.3.4.5/",
        "http://256.0.0.1/",
        "http://127.0.0.01/",
        "http://example.0x7f/",
        "http://[::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[::1/",
        "http://[127.0.0.1]/",
        "http://exa mple.com/",
        "http://example.com/\r\nX: y",
        "http://example.com\\@127.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com:port/",
        "http://-example.com/",
        "http://exam..ple.com/",
        "http://" + "a" * 254 + "/",
        "http://example.com/" + "a" * 9_000,
    ],
)
def test_a_url_that_is_refused(url: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_url(url)
    assert refusal.value.code == "URL_INVALID"


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://Example.COM", "example.com", 80, "example.com"),
        ("https://example.com.:8443/a?b=c", "example.com", 8443, "example.com:8443"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "xn--bcher-kva.example"),
        ("http://127.0.0.1./", "127.0.0.1", 80, "127.0.0.1"),
        ("http://１２７.０.０.１/", "127.0.0.1", 80, "127.0.0.1"),
        ("http://①②⑦.0.0.1/", "127.0.0.1", 80, "127.0.0.1"),
        ("http://[::FFFF:127.0.0.1]:81/", "::ffff:7f00:1", 81, "[::ffff:7f00:1]:81"),
    ],
)
def test_a_host_has_one_spelling(url: str, host: str, port: int, authority: str) -> None:
    target = parse_url(url)
    assert (target.host, target.port, target.authority) == (host, port, authority)


def test_what_is_shown_of_a_url_holds_no_query() -> None:
    assert parse_url("https://example.com/a?token=secret#frag").shown == "https://example.com/a"


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "allowed"),
    [
        ("localhost:8080", "localhost", 8080, "127.0.0.1", True),
        ("localhost:8080", "localhost", 8081, "127.0.0.1", False),
        ("localhost:8080", "rebound.example", 8080, "127.0.0.1", False),
        ("127.0.0.1:9000", "127.0.0.1", 9000, "127.0.0.1", True),
        ("127.0.0.1:9000", "127.0.0.1", 9001, "127.0.0.1", False),
        ("10.1.2.3", "10.1.2.3", 5, "10.1.2.3", True),
        ("10.0.0.0/8", "db.example", 5432, "10.9.9.9", True),
        ("10.0.0.0/8", "db.example", 5432, "11.9.9.9", True),
        ("10.0.0.0/8", "db.example", 5432, "192.168.0.1", False),
        ("[::1]:80", "::1", 80, "::1", True),
        ("[::1]:80", "::1", 81, "::1", False),
        ("::1", "::1", 81, "::1", True),
        ("127.0.0.0/8", "x.example", 80, "::ffff:127.0.0.1", False),
        ("192.168.1.5/24", "x.example", 80, "192.168.1.77", True),
        ("192.168.1.5/24:80", "x.example", 81, "192.168.1.77", False),
        ("fd00::1/64", "x.example", 80, "fd00::2", True),
        ("Bücher.example.:80", "xn--bcher-kva.example", 80, "10.0.0.1", True),
    ],
)
def test_the_allow_list(entry: str, host: str, port: int, address: str, allowed: bool) -> None:
    assert AddressRules.parse([entry]).allow(host, port, ip_address(address)) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        *("", "localhost", "localhost:", "localhost:0", "localhost:x", "localhost:²", ":80", "10.0.0.0/33", "*"),
        *("http://db:80", "10.1.2:80", "a b:80", "-:80", "x" * 64 + ":80", "\u2024:80"),
    ],
)
def test_an_allow_list_entry_that_means_nothing(entry: str) -> None:
    with pytest.raises(UserError, match="none of host:port, address"):
        AddressRules.parse([entry])


async def test_a_name_of_this_machine_is_refused_after_resolution() -> None:
    with pytest.raises(Refused) as refusal:
        await addresses_of("localhost", 80, NONE)
    assert refusal.value.code == "ADDRESS_REFUSED"


@pytest.mark.parametrize("name", ["localhost", "LocalHost.", "a.localhost"])
async def test_names_of_this_machine_need_no_name_server(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(Refused, match=r"is at 127\.0\.0\.1"):
        await addresses_of(name, 80, NONE)


@pytest.mark.parametrize("name", ["localhost.example", "notlocalhost", "local", ""])
def test_other_names_are_not_this_machine(name: str) -> None:
    assert not is_localhost(name)


async def test_name_servers_that_are_silent_are_a_name_that_was_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("rayloom.tools.addresses.LOOK_UP_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    with pytest.raises(Transient, match=r"within 0\.05 s") as failure:
        await addresses_of("silent.example", 80, NONE)
    assert failure.value.code == "DNS_FAILED"


async def test_one_private_address_among_public_ones_refuses_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(_host: str, _port: int) -> list[object]:
        return [ip_address("8.8.8.8"), ip_address("127.0.0.1")]

    monkeypatch.setattr("rayloom.tools.addresses._look_up", answers)
    with pytest.raises(Refused):
        await addresses_of("rebind.example", 80, NONE)
