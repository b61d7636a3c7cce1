"""Webhooks: their secrets, signatures, bodies, and when they are sent again."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from rayloom.dag import webhook

# The example of the Standard Webhooks libraries.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'


def test_the_signature_is_that_of_standard_webhooks() -> None:
    key = webhook.secret_bytes(SECRET)
    assert key is not None
    made = webhook.headers(key, webhook_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=BODY)
    assert made == {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def _secret(size: int) -> str:
    return "whsec_" + base64.b64encode(bytes(size)).decode()


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_of_the_right_size_is_taken(size: int) -> None:
    assert webhook.secret_bytes(_secret(size)) == bytes(size)


@pytest.mark.parametrize(
    "secret", ["hunter22", "ein Schlüssel", SECRET.removeprefix("whsec_"), " whsec_AAAA", "WHSEC_AAAA", "ä" * 256]
)
def test_the_key_of_any_other_text_is_its_bytes(secret: str) -> None:
    assert webhook.secret_bytes(secret) == secret.encode("utf-8")


@pytest.mark.parametrize(
    "secret",
    [
        *("", "whsec_", "1234567", "x" * 257, SECRET + "=", SECRET[:-1] + "*", "whsec_ä" * 30),
        *(_secret(23), _secret(65)),
    ],
)
def test_what_can_be_no_secret_is_none(secret: str) -> None:
    assert webhook.secret_bytes(secret) is None


def test_a_derived_secret_is_a_users_own_and_stays() -> None:
    first = webhook.derived_secret("master", "ann")
    assert webhook.secret_bytes(first) is not None
    assert webhook.derived_secret("master", "ann") == first
    assert len({first, webhook.derived_secret("master", "bob"), webhook.derived_secret("another", "ann")}) == 3


def test_the_body_is_a_cloud_event() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    made = webhook.event(
        webhook_id="w", source="http://here", task_id="t", at=at, status="COMPLETED", about={"result": [1]}
    )
    assert made == {
        "specversion": "1.0", "id": "w", "source": "http://here", "type": "rayloom.task.completed", "subject": "t",
        "time": "2026-01-02T03:04:05.678000Z", "datacontenttype": "application/json",
        "data": {"task_id": "t", "status": "COMPLETED", "result": [1]},
    }  # fmt: skip


def test_waits_grow_to_a_day_and_come_to_an_end() -> None:
    waits = [webhook.wait_s(tries, initial_s=1, asked_s=None, jitter=0) for tries in range(1, 11)]
    assert waits == [5, 25, 125, 625, 3_125, 15_625, 78_125, 86_400, 86_400, None]


def test_a_wait_is_never_shorter_than_asked_for_and_never_longer_than_a_day() -> None:
    assert webhook.wait_s(1, initial_s=1, asked_s=3, jitter=0) == 5
    assert webhook.wait_s(1, initial_s=1, asked_s=60, jitter=0) == 60
    assert webhook.wait_s(1, initial_s=1, asked_s=1e9, jitter=0) == 86_400
    assert webhook.wait_s(1, initial_s=1, asked_s=None, jitter=1) == 5.5
    assert webhook.wait_s(0, initial_s=1, asked_s=None, jitter=0) == 5


def test_only_2xx_is_delivered_and_only_410_unwanted() -> None:
    assert [status for status in range(100, 600) if webhook.is_delivered(status)] == list(range(200, 300))
    assert [status for status in range(100, 600) if webhook.is_unwanted(status)] == [410]
