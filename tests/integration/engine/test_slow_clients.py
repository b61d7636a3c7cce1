"""Slow and malformed clients of a running rayloom: raw bytes to Serve's proxy, and every answer is JSON."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from select import select
from threading import Thread
from typing import Any

import httpx2
import pytest

from tests.integration.instance import Instance
from tests.integration.waiting import GENEROUS_S

HEADERS_S, BODY_IDLE_S = 10.0, 15.0
LATE_S = 8.0
"""How late a busy machine may be."""
BODIES, BEYOND = 32, 4
"""The limit of bodies of a user that arrive slowly, and how many more are sent."""


@contextmanager
def _connection(instance: Instance) -> Iterator[socket.socket]:
    url = httpx2.URL(instance.url)
    with closing(socket.create_connection((url.host, url.port), timeout=GENEROUS_S)) as connection:
        yield connection


def _rest(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


def _problem(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/problem+json" in head.lower()
    assert b"connection: close" in head.lower()
    if b"transfer-encoding: chunked" in head.lower():
        body = body.split(b"\r\n")[1]
    problem: dict[str, Any] = json.loads(body)
    assert {"type", "title", "status", "detail", "instance"} <= set(problem)
    assert (problem["status"], problem["type"]) == (status, f"urn:rayloom:problem:{code}")


def _head(instance: Instance, length: int = 1000) -> bytes:
    key = instance.key
    return (
        f"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_slow_headers_and_silent_bodies_end_in_time_and_with_json(instance: Instance) -> None:
    """All at once, as each waits for real."""
    with _connection(instance) as silent, _connection(instance) as dribbling, _connection(instance) as body:
        began = time.monotonic()
        dribbling.sendall(b"GET / HTTP/1.1\r\n")
        body.sendall(_head(instance) + b"{")
        found: dict[str, tuple[bytes, float]] = {}

        def read(name: str, connection: socket.socket) -> None:
            found[name] = _rest(connection), time.monotonic() - began

        names = {"silent": silent, "dribbling": dribbling, "body": body}
        readers = {name: Thread(target=read, args=(name, each), daemon=True) for name, each in names.items()}
        for reader in readers.values():
            reader.start()
        while readers["dribbling"].is_alive() and time.monotonic() - began < GENEROUS_S:
            dribbling.sendall(b"x")
            readers["dribbling"].join(1.0)
        for reader in readers.values():
            reader.join(GENEROUS_S)
    assert found["silent"][0] == b""
    _problem(found["dribbling"][0], 408, "headers-too-slow")
    _problem(found["body"][0], 408, "body-too-slow")
    assert HEADERS_S - 1 < found["silent"][1] < HEADERS_S + LATE_S
    assert HEADERS_S - 1 < found["dribbling"][1] < HEADERS_S + LATE_S
    assert BODY_IDLE_S - 1 < found["body"][1] < BODY_IDLE_S + LATE_S


def test_slow_bodies_of_one_user_beyond_the_limit_are_refused(instance: Instance) -> None:
    with ExitStack() as connections:
        waiting = [connections.enter_context(_connection(instance)) for _ in range(BODIES + BEYOND)]
        for each in waiting:
            each.sendall(_head(instance) + b"{")
        refused: list[bytes] = []
        while len(refused) < BEYOND:
            ready, _, _ = select(waiting, [], [], GENEROUS_S)
            assert ready
            refused += [_rest(each) for each in ready]
            waiting = [each for each in waiting if each not in ready]
        # The others are read on, and so is a quick body of the same user.
        for answer in refused:
            _problem(answer, 429, "too-many-bodies")
            assert b"retry-after: " in answer.lower()
        with instance.http() as http:
            assert http.post("/tasks", json={"prompt": ""}).status_code == 422


def test_key_is_judged_before_the_body_arrives(instance: Instance) -> None:
    with _connection(instance) as connection:
        connection.sendall(
            b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nX-API-Key: wrong\r\nContent-Length: 1000\r\n\r\n"
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01 nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 66_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        bytes.fromhex("16030100c5010000c10303") + bytes(range(186)),
    ],
    ids=["garbage", "two lengths", "length and encoding", "bad chunk", "long header", "HTTP/2", "TLS"],
)
def test_malformed_http_is_answered_400_and_the_server_goes_on(instance: Instance, data: bytes) -> None:
    with _connection(instance) as connection:
        connection.sendall(data)
        answer = _rest(connection)
    if b"\r\nzz\r\n" in data and answer.startswith(b"HTTP/1.1 401 "):
        # The API answered before the body turned out to be malformed.
        assert b"application/problem+json" in answer
    else:
        _problem(answer, 400, "malformed")
    assert httpx2.get(f"{instance.url}/healthz", trust_env=False).status_code == 200


def test_routes_and_refusals_of_serve_itself_are_json(instance: Instance) -> None:
    with httpx2.Client(base_url=instance.url, timeout=GENEROUS_S, trust_env=False) as http:
        health, routes = http.get("/-/healthz"), http.get("/-/routes")
        assert (health.status_code, health.json()) == (200, {"status": "success"})
        assert routes.status_code == 200
        assert "/" in routes.json()
        odd = http.get("/healthz", headers={b"X-Request-ID": b"\xff"})
        late = http.get("/api/v1/tasks", headers={"X-Request-Timeout-Seconds": "0.000001"})
        upgrade = http.get("/healthz", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
    for answer, status in ((odd, 400), (late, 408)):
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.json()["status"] == status
    assert upgrade.status_code == 200
